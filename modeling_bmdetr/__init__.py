"""BM-DETR for video moment retrieval, in the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .cards import write_model_card
from .configuration_bmdetr import BMDetrConfig, FeatureContract
from .modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrModel
from .pipeline_bmdetr import MomentRetrievalPipeline
from .processing_bmdetr import BMDetrProcessor
from .training import BMDetrTrainer, BMDetrTrainingArguments

AutoConfig.register(BMDetrConfig.model_type, BMDetrConfig, exist_ok=True)
AutoModel.register(BMDetrConfig, BMDetrForMomentRetrieval, exist_ok=True)
AutoProcessor.register(BMDetrConfig, BMDetrProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "temporal-grounding", pipeline_class=MomentRetrievalPipeline, pt_model=AutoModel, type="multimodal"
)
BMDetrForMomentRetrieval.card_writer = staticmethod(write_model_card)

__all__ = [
    "BMDetrConfig",
    "BMDetrModel",
    "BMDetrForMomentRetrieval",
    "BMDetrProcessor",
    "MomentRetrievalPipeline",
    "BMDetrTrainer",
    "BMDetrTrainingArguments",
    "FeatureContract",
]
