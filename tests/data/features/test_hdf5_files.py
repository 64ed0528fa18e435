"""Features in one HDF5 file, as some publishers give them."""

import pickle
import sys

import numpy as np
import pytest
from factories import make_row

from modeling_bmdetr.cli import main
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, pack_features, write_rows

h5py = pytest.importorskip("h5py")

CONTRACT = FeatureContract(text_rows="all")


@pytest.fixture
def files(tmp_path):
    """Two videos as datasets, the same two as groups, and a query."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((rows, 6)).astype(np.float32) for name, rows in (("v1", 5), ("v2", 7))}
    with h5py.File(tmp_path / "plain.h5", "w") as plain, h5py.File(tmp_path / "groups.hdf5", "w") as groups:
        for name, array in arrays.items():
            plain.create_dataset(name, data=array.astype(np.float16), compression="gzip")
            groups[f"{name}/c3d_features"] = array
    with h5py.File(tmp_path / "text.h5", "w") as text:
        text["qid7/last_hidden_state"] = rng.standard_normal((9, 4))
        text["qid7/attention_mask"] = np.arange(9) < 5
    return tmp_path, arrays


def store_of(*places, **options):
    return FeatureStore.from_files(places, contract=CONTRACT, **options)


def test_datasets_and_groups_are_read_and_packed(files, tmp_path, capsys):
    folder, arrays = files
    store = store_of(folder / "groups.hdf5", folder / "plain.h5", text_dir=folder / "text.h5", video_key="c3d_features")
    assert store.video_ids == ["v1", "v2"]
    assert [encoder["name"] for encoder in store.contract.video_encoders] == ["groups", "plain"]
    np.testing.assert_array_equal(store.video("v2")[:, :6], arrays["v2"])
    np.testing.assert_allclose(store.video("v2")[:, 6:], arrays["v2"], atol=2e-3)
    assert store.num_clips("v1") == 5
    assert store.text("7").shape == (9, 4)
    assert pickle.loads(pickle.dumps(store)).has_video("v1")

    packed = pack_features(store, tmp_path / "packed", progress=False)
    np.testing.assert_array_equal(packed.video("v1"), store.video("v1"))
    assert (
        main(["pack", str(folder / "plain.h5"), "--text", str(folder / "text.h5"), "--out", str(tmp_path / "s")]) == 0
    )
    assert "2 videos and 1 queries packed" in capsys.readouterr().out


def test_the_end_of_a_sentence_is_known_from_the_mask(files):
    folder, _ = files
    contract = FeatureContract(text_rows="to_end_of_text")
    store = FeatureStore.from_files(folder / "plain.h5", folder / "text.h5", contract=contract)
    assert store.text("7").shape == (5, 4)


def test_a_name_finds_its_own_array_or_nothing(files):
    folder, _ = files
    store = store_of(folder / "plain.h5")
    with pytest.raises(FileNotFoundError, match=r"plain\.h5' has no features of 'v1\.mp4' \(looked for v1\.mp4\)"):
        store.video("v1.mp4")
    with pytest.raises(ValueError, match=r"has no array 'features', only c3d_features. Name the array to read"):
        store_of(folder / "groups.hdf5")
    with h5py.File(folder / "suffix.h5", "w") as file:
        file["v1.mp4"], file["other.avi"] = np.ones((3, 6)), np.ones((3, 6))
    assert store_of(folder / "suffix.h5", video_suffix=".mp4").video_ids == ["v1"]


def hostile(path, kind):
    secret = path.with_name("secret.h5")
    with h5py.File(secret, "w") as file:
        file["a"] = np.ones((3, 6))
    with h5py.File(path, "w") as file:
        if kind == "link":
            file["v1"] = h5py.ExternalLink(secret.name, "/a")
        elif kind == "two links":
            file["w/v"] = h5py.ExternalLink(secret.name, "/a")
            file["v1"] = h5py.SoftLink("/w/v")
        elif kind == "external":
            file.create_dataset("v1", (3, 6), "f4", external=[(str(secret), 0, 72)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 6), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "a", (3, 6))
            file.create_virtual_dataset("v1", layout)
        elif kind == "huge":
            file.create_dataset("v1", (10**9, 10**4), "f4", chunks=(1000, 1000), compression="gzip")
        elif kind == "words":
            file["v1"] = ["one", "two"]
        elif kind == "flat":
            file["v1"] = np.ones(5)
        elif kind == "empty":
            file["v1"] = h5py.Empty("f4")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("link", "is a link, perhaps into another file"),
        ("two links", "is a link, perhaps into another file"),
        ("external", "keeps its values in another file"),
        ("virtual", "keeps its values in another file"),
        ("huge", "an array has at most"),
        ("words", "cannot be read as features"),
        ("flat", r"must hold an array \(rows, dim\)"),
        ("empty", r"must hold an array \(rows, dim\)"),
    ],
)
def test_what_leads_elsewhere_or_is_no_array_is_refused(tmp_path, kind, message):
    hostile(tmp_path / "features.h5", kind)
    with pytest.raises(ValueError, match=message):
        store_of(tmp_path / "features.h5")


def test_a_file_cut_off_or_foreign_is_named(files):
    folder, _ = files
    content = (folder / "plain.h5").read_bytes()
    for bad in (content[:300], content[: len(content) // 2], b"no HDF5", b""):
        (folder / "bad.h5").write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad\.h5 cannot be read as HDF5 features"):
            store_of(folder / "bad.h5").video("v2")
    with pytest.raises(FileNotFoundError, match=r"feature file .*absent\.h5' does not exist"):
        store_of(folder / "absent.h5")


def test_without_h5py_the_error_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        store_of(files[0] / "plain.h5")


def test_rows_are_checked_against_hdf5_files(files, capsys):
    folder, _ = files
    rows = folder / "rows.jsonl"
    write_rows(rows, [make_row(qid=7, vid="v1"), make_row(qid=8, vid="v3", query="A man sits.")])
    assert main(["validate", str(rows), "--features", str(folder / "plain.h5")]) == 1
    said = capsys.readouterr().out
    assert f"'{folder / 'plain.h5'}' lacks 1 of 2 videos: v3" in said
    assert "queries" not in said

    write_rows(rows, [make_row(qid=7, vid="v1")])
    assert main(["validate", str(rows), "--features", str(folder)]) == 0  # a folder of three such files
    said = capsys.readouterr().out
    assert "groups.hdf5': features of 1 of 1 videos" in said
    assert "text.h5': text features of 1 of 1 queries" in said
    (folder / "broken.h5").write_bytes(b"no HDF5")
    assert main(["validate", str(rows), "--features", str(folder / "broken.h5")]) == 2
    assert "broken.h5 cannot be read" in capsys.readouterr().err
    assert main(["validate", str(rows), "--features", str(rows)]) == 1
    assert "hold no .npz" in capsys.readouterr().out
