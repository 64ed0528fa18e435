"""Which negative queries there are: one rule for the model, the targets and the counts over processes."""

import torch
from factories import tiny_batch, tiny_config

from modeling_bmdetr.background_bmdetr import present_negatives
from modeling_bmdetr.targets_bmdetr import COUNTS, VIEWS, MomentTargets
from modeling_bmdetr.training.distributed import count_targets


def test_a_negative_query_without_a_token_is_none():
    mask = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]])
    for given in (mask, mask.bool(), mask.float()):
        assert present_negatives(given).tolist() == [[True, False], [False, True]]


def test_targets_and_counts_tell_the_same_negative_queries():
    batch, config = tiny_batch(), tiny_config()  # the third row lacks one negative query, the fourth both
    present = [[True, True], [True, True], [True, False], [False, False]]
    assert MomentTargets.from_inputs(config, batch).negative_mask.tolist() == present
    counts = count_targets(batch, config.num_queries)
    assert counts[VIEWS.index(""), COUNTS.index("negatives")] == 5
    assert counts[VIEWS.index("negative_"), COUNTS.index("rows")] == 5
