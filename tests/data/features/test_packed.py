"""The packed form: what it holds, who may open it, and writers that are killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_cases import (
    CLIP,
    CONTRACT,
    SLOWFAST,
    TEXT,
    VIDS,
    assert_same_store,
    make_rows,
    open_files,
    values,
    write_folders,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import modeling_bmdetr.data.features.packed as packed_layout
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, FeatureWriter, pack_features


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


class TestPacked:
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 2e-3)])
    def test_holds_what_the_files_hold(self, folders, dtype, tolerance):
        files = open_files(folders)
        packed = pack_features(files, folders / "packed", dtype=dtype, progress=False)
        assert_same_store(files, packed, make_rows(), tolerance)
        assert packed.contract == files.contract
        assert (packed.video_ids, packed.query_ids) == (files.video_ids, files.query_ids)
        size = (folders / "packed" / "video.bin").stat().st_size
        assert size == (5 + 6) * (SLOWFAST + CLIP) * np.dtype(dtype).itemsize

    def test_arrays_belong_to_the_caller(self, folders):
        packed = pack_features(open_files(folders), folders / "packed", progress=False)
        packed.video("AO8RW")[:] = 0
        assert packed.video("AO8RW").any()
        torch.from_numpy(packed.text("0")).add_(1)

    def test_reading_falls_back_to_a_memory_map(self, folders, monkeypatch):
        packed = pack_features(open_files(folders), folders / "packed", progress=False)
        expected = packed.video("AO8RW")
        monkeypatch.setattr(packed_layout, "_HAS_POSITIONAL_READS", False)
        mapped = FeatureStore.from_packed(folders / "packed")
        np.testing.assert_array_equal(mapped.video("AO8RW"), expected)
        mapped.video("AO8RW")[:] = 0
        np.testing.assert_array_equal(mapped.video("AO8RW"), expected)

    def test_only_the_rows_given_are_packed_and_their_sentences_recorded(self, folders):
        packed = pack_features(open_files(folders), folders / "packed", rows=make_rows(["1"]), progress=False)
        assert (packed.video_ids, packed.query_ids) == ([VIDS[1]], ["1"])
        assert packed.sentence("1") == "she reads"
        assert packed.sentence("1") == pack_features(packed, folders / "again", progress=False).sentence("1")

    def test_open_takes_either_form(self, folders):
        pack_features(
            [folders / "slowfast", folders / "clip"],
            folders / "packed",
            text_dir=folders / "text",
            contract=CONTRACT,
            progress=False,
        )
        packed = FeatureStore.open(folders / "packed")
        files = FeatureStore.open(
            [folders / "slowfast", folders / "clip"], text_dir=folders / "text", contract=CONTRACT
        )
        assert_same_store(files, packed, make_rows())
        with pytest.raises(ValueError, match="mixes packed folders"):
            FeatureStore.open([folders / "packed", folders / "clip"])

    def test_the_contract_given_must_fit_and_then_holds(self, folders):
        pack_features(open_files(folders), folders / "packed", progress=False)
        shorter = FeatureContract(**{**CONTRACT.to_dict(), "max_tokens": 2, "max_clips": 3})
        store = FeatureStore.from_packed(folders / "packed", shorter)
        assert store.contract == shorter
        assert len(store.text("0")) == 2
        other = FeatureContract(**{**CONTRACT.to_dict(), "clip_length": 1.0})
        with pytest.raises(ValueError, match=r"(?s)do not fit the contract given.*clip_length: 1.0 against 2.0"):
            FeatureStore.from_packed(folders / "packed", other)

    def test_several_folders_are_one_store(self, folders):
        files = open_files(folders)
        parts = [folders / "first", folders / "second"]
        for part, qids in zip(parts, (["0"], ["1", "2"]), strict=True):
            pack_features(files, part, rows=make_rows(qids), progress=False)
        joined = FeatureStore.from_packed(parts)
        assert_same_store(files, joined, make_rows())
        assert (joined.video_ids, joined.query_ids) == (sorted(VIDS), ["0", "1", "2"])
        assert joined.sentence("1") == "she reads"
        with pytest.raises(FileNotFoundError, match="no features of 'nobody'"):
            joined.video("nobody")
        joined.close()
        assert_same_store(files, joined, make_rows())

    def test_a_qid_of_two_sentences_is_not_joined(self, folders):
        for name, sentence in (("train", "she reads"), ("test", "he sleeps")):
            with FeatureWriter(folders / name, CONTRACT) as writer:
                writer.add_text("0", values(3, TEXT), sentence)
                writer.finish()
        with pytest.raises(ValueError, match=r"query '0' is in .*train' and in .*test'"):
            FeatureStore.from_packed([folders / "train", folders / "test"])

    def test_a_store_travels_to_other_processes_after_it_was_read(self, folders):
        packed = pack_features(open_files(folders), folders / "packed", progress=False)
        for store in (packed, open_files(folders)):
            expected = store.video("AO8RW")
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).video("AO8RW"), expected)

    @pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers_of_a_data_loader_read_it(self, folders, context):
        packed = pack_features(open_files(folders), folders / "packed", progress=False)
        packed.video("AO8RW")  # opened before the workers start
        loader = torch.utils.data.DataLoader(
            StoreDataset(packed, VIDS * 4), batch_size=None, num_workers=2, multiprocessing_context=context
        )
        for vid, video in zip(VIDS * 4, loader, strict=True):
            np.testing.assert_array_equal(video.numpy(), packed.video(vid))

    @pytest.mark.parametrize("name", ["video.bin", "text.bin", "video.index.jsonl"])
    def test_a_folder_copied_in_part_is_refused(self, folders, name):
        pack_features(open_files(folders), folders / "packed", progress=False)
        path = folders / "packed" / name
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"damaged.*again"):
            FeatureStore.from_packed(folders / "packed")
        path.unlink()
        with pytest.raises(ValueError, match="again"):
            FeatureStore.from_packed(folders / "packed")

    def test_a_manifest_of_another_version_is_refused(self, folders):
        pack_features(open_files(folders), folders / "packed", progress=False)
        path = folders / "packed" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
        with pytest.raises(ValueError, match=r"(?s)99.*Pack the features again"):
            FeatureStore.from_packed(folders / "packed")
        with pytest.raises(FileNotFoundError, match="not a packed feature store"):
            FeatureStore.from_packed(folders)

    def test_damaged_files_are_listed_and_the_rest_is_packed(self, folders):
        (folders / "clip" / f"{VIDS[0]}.npy").write_bytes(b"")
        (folders / "text" / "qid1.npz").write_bytes(b"")
        files = FeatureStore.from_files(folders / "slowfast", folders / "text", contract=FeatureContract())
        (folders / "slowfast" / f"{VIDS[0]}.npz").write_bytes(b"")
        with pytest.raises(ValueError, match=r"(?s)2 arrays could not be packed.*AO8RW\.npz.*qid1\.npz"):
            pack_features(files, folders / "packed", progress=False)
        with pytest.raises(ValueError, match=r"unfinished.*1 videos and 2 queries"):
            FeatureStore.from_packed(folders / "packed")
        np.savez(folders / "slowfast" / f"{VIDS[0]}.npz", features=values(6, SLOWFAST))
        np.savez(folders / "text" / "qid1.npz", last_hidden_state=values(4, TEXT))
        packed = pack_features(files, folders / "packed", progress=False)
        np.testing.assert_array_equal(packed.video(VIDS[0]), values(6, SLOWFAST))

    def test_features_that_float16_makes_zeros_of_are_refused_by_name(self, folders):
        for name in VIDS:
            np.savez(folders / "slowfast" / f"{name}.npz", features=1e-9 * values(6, SLOWFAST))
        files = FeatureStore.from_files(folders / "slowfast", folders / "text", contract=FeatureContract())
        with pytest.raises(ValueError, match=rf"video '{VIDS[0]}' hold values that are too small for float16"):
            pack_features(files, folders / "half", dtype="float16", progress=False)
        packed = pack_features(files, folders / "packed", progress=False)
        np.testing.assert_array_equal(packed.video(VIDS[0]), np.float32(1e-9 * values(6, SLOWFAST)))

    @settings(deadline=None, derandomize=True, max_examples=30)
    @given(
        lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
        dtype=st.sampled_from(["float16", "float32"]),
        stops=st.sets(st.integers(0, 11)),
    )
    def test_any_arrays_come_back_however_often_the_writer_stopped(self, tmp_path_factory, lengths, dtype, stops):
        folder = tmp_path_factory.mktemp("store")
        writer = FeatureWriter(folder, CONTRACT, dtype=dtype)
        for number, length in enumerate(lengths):
            if number in stops:
                writer.close()
                writer = FeatureWriter(folder, CONTRACT, dtype=dtype)
            writer.add_video(f"v{number}", values(length, SLOWFAST + CLIP, seed=number))
            writer.add_text(f"q{number}", values(length, TEXT, seed=number), f"sentence {number} é")
        writer.finish()
        writer.close()
        store = FeatureStore.from_packed(folder)
        for number, length in enumerate(lengths):
            expected = values(length, SLOWFAST + CLIP, seed=number).astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(store.video(f"v{number}"), expected)
            assert store.text(f"q{number}").shape == (min(length, 8), TEXT)
            assert store.sentence(f"q{number}") == f"sentence {number} é"


class StoreDataset(torch.utils.data.Dataset):
    def __init__(self, store, vids):
        self.store, self.vids = store, vids

    def __len__(self):
        return len(self.vids)

    def __getitem__(self, index):
        return torch.from_numpy(self.store.video(self.vids[index]))


class TestWriter:
    def test_wrong_arrays_are_refused_and_leave_nothing(self, tmp_path):
        with FeatureWriter(tmp_path, CONTRACT, dtype="float16") as writer:
            for wrong in (values(3, 9), values(10), np.zeros((0, 10))):
                with pytest.raises(ValueError, match=r"shape \(rows >= 1, 10\)"):
                    writer.add_video("a", wrong)
            with pytest.raises(ValueError, match="not finite"):
                writer.add_video("a", np.full((2, 10), np.nan))
            with pytest.raises(ValueError, match="too large for float16"):
                writer.add_video("a", np.full((2, 10), 1e6))
            writer.add_video("a", values(2, 10))
            with pytest.raises(ValueError, match="video 'a' is in the store already"):
                writer.add_video("a", values(2, 10))
            writer.finish()
        assert FeatureStore.from_packed(tmp_path).video_ids == ["a"]

    def test_an_unfinished_store_is_not_read(self, tmp_path):
        with FeatureWriter(tmp_path, CONTRACT) as writer:
            writer.add_video("a", values(2, 10))
        with pytest.raises(ValueError, match=r"unfinished.*goes on where it stopped"):
            FeatureStore.from_packed(tmp_path)

    def test_a_finished_store_can_grow(self, tmp_path):
        for number in range(3):
            with FeatureWriter(tmp_path, CONTRACT) as writer:
                assert sorted(writer.videos) == [f"v{i}" for i in range(number)]
                writer.add_video(f"v{number}", values(2, 10, seed=number))
                writer.add_text(f"q{number}", values(2, TEXT), "a")
                assert writer.queries[f"q{number}"] == "a"
                writer.finish()
        store = FeatureStore.from_packed(tmp_path)
        for number in range(3):
            np.testing.assert_array_equal(store.video(f"v{number}"), values(2, 10, seed=number))

    def test_other_features_are_not_mixed_in(self, tmp_path):
        with FeatureWriter(tmp_path, CONTRACT) as writer:
            writer.finish()
        other = FeatureContract(**{**CONTRACT.to_dict(), "clip_length": 1.0})
        with pytest.raises(ValueError, match=r"(?s)clip_length: 1.0 against 2.0.*another folder"):
            FeatureWriter(tmp_path, other)
        with pytest.raises(ValueError, match="dtype: float16 against float32"):
            FeatureWriter(tmp_path, CONTRACT, dtype="float16")
        with pytest.raises(ValueError, match="names no encoder"):
            FeatureWriter(tmp_path / "new", FeatureContract())
        with pytest.raises(ValueError, match="`dtype` must be one of"):
            FeatureWriter(tmp_path / "new", CONTRACT, dtype="int8")  # type: ignore[arg-type]

    @pytest.mark.skipif(sys.platform == "win32", reason="file locks are POSIX")
    def test_a_second_writer_is_kept_out(self, tmp_path):
        with FeatureWriter(tmp_path, CONTRACT), pytest.raises(ValueError, match="another process is writing"):
            FeatureWriter(tmp_path, CONTRACT)
        FeatureWriter(tmp_path, CONTRACT).close()

    def test_what_a_torn_write_left_is_dropped(self, tmp_path):
        with FeatureWriter(tmp_path, CONTRACT) as writer:
            writer.add_video("a", values(2, 10))
            writer.add_video("b", values(3, 10))
        index, data = tmp_path / "video.index.jsonl", tmp_path / "video.bin"
        whole = index.read_bytes(), data.read_bytes()
        damages = [
            (whole[0][:-5], whole[1]),  # the last line of the index was half written
            (whole[0], whole[1][:-4]),  # rows that the index names are not there
            (whole[0] + b'{"name": "c"', whole[1] + b"\0" * 99),
            (b"", whole[1]),
        ]
        for index_bytes, data_bytes in damages:
            index.write_bytes(index_bytes)
            data.write_bytes(data_bytes)
            with FeatureWriter(tmp_path, CONTRACT) as writer:
                for vid, rows in (("a", 2), ("b", 3), ("c", 4)):
                    if vid not in writer.videos:
                        writer.add_video(vid, values(rows, 10))
                writer.finish()
            store = FeatureStore.from_packed(tmp_path)
            for vid, rows in (("a", 2), ("b", 3), ("c", 4)):
                np.testing.assert_array_equal(store.video(vid), values(rows, 10))

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
    def test_a_killed_writer_goes_on_where_it_stopped(self, tmp_path):
        script = textwrap.dedent(
            """
            import sys
            import time

            import numpy as np
            import modeling_bmdetr.data.features.writer as feature_writer
            from modeling_bmdetr.contract_bmdetr import FeatureContract

            feature_writer._COMMIT_SECONDS = 0.05
            contract = FeatureContract(video_encoders=({"name": "e", "dim": 64},))
            with feature_writer.FeatureWriter(sys.argv[1], contract) as writer:
                print("start", len(writer.videos), flush=True)
                for number in range(len(writer.videos), 100_000):
                    writer.add_video(f"v{number}", np.full((5, 64), number % 1000, np.float32))
                    time.sleep(0.0005)
            """
        )
        store = tmp_path / "store"
        kept = 0
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(store)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert process.stdout is not None
            assert process.stdout.readline() == f"start {kept}\n"
            wait_for_growth(store / "video.index.jsonl")
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            process.stdout.close()
            with pytest.raises(ValueError, match="unfinished"):
                FeatureStore.from_packed(store)
            contract = FeatureContract(video_encoders=({"name": "e", "dim": 64},))
            with FeatureWriter(store, contract) as writer:
                before, kept = kept, len(writer.videos)
            assert kept > before
        with FeatureWriter(store, contract) as writer:
            writer.finish()
        packed = FeatureStore.from_packed(store)
        assert len(packed.video_ids) == kept
        for number in range(kept):
            video = packed.video(f"v{number}")
            assert video.shape == (5, 64)
            assert (video == number % 1000).all()


def wait_for_growth(path: Path, timeout_s: float = 60.0) -> None:
    """Returns when the file has grown twice since the call."""
    seen = {path.stat().st_size}
    deadline = time.monotonic() + timeout_s
    while len(seen) < 3:
        assert time.monotonic() < deadline, f"{path} did not grow"
        time.sleep(0.01)
        seen.add(path.stat().st_size)
