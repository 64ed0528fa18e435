"""Feature stores: published layouts, the packed form, what `require` finds, and writers that are killed."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.configuration_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, FeatureWriter, count_tokens, pack_features, packed_features

SLOWFAST, CLIP, TEXT = 6, 4, 5
CONTRACT = FeatureContract(
    video_encoders=({"name": "slowfast", "dim": SLOWFAST}, {"name": "clip", "dim": CLIP}),
    text_encoder={"name": "clip-text", "dim": TEXT},
    clip_length=2.0,
    max_tokens=8,
)
VIDS = ["AO8RW", "NUsG9BgSes0_210.0_360.0"]


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def make_rows(qids=("0", "1", "2")):
    sentences = ["a man opens a door", "she reads", "a man opens a door"]
    return [
        {"qid": qid, "vid": VIDS[int(qid) % 2], "query": sentences[int(qid)], "duration": 10.0 + 2 * (int(qid) % 2)}
        for qid in qids
    ]


@pytest.fixture
def folders(tmp_path):
    """Two video folders of different lengths, and text features of three queries, as published."""
    for name in ("slowfast", "clip", "text"):
        (tmp_path / name).mkdir()
    for number, vid in enumerate(VIDS):
        np.savez(tmp_path / "slowfast" / f"{vid}.npz", features=values(6 + number, SLOWFAST))
        np.save(tmp_path / "clip" / f"{vid}.npy", values(5 + number, CLIP).astype(np.float16))
    for qid, tokens in (("0", 7), ("1", 4), ("2", 7)):
        np.savez(tmp_path / "text" / f"qid{qid}.npz", last_hidden_state=values(tokens, TEXT), pooler_output=values(3))
    return tmp_path


def open_files(folders, contract=CONTRACT, **options):
    return FeatureStore.from_files(
        [folders / "slowfast", folders / "clip"], folders / "text", contract=contract, **options
    )


def assert_same_store(left, right, rows, tolerance=0.0):
    for row in rows:
        np.testing.assert_allclose(left.video(row["vid"]), right.video(row["vid"]), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(left.text(row["qid"]), right.text(row["qid"]), rtol=tolerance, atol=tolerance)
        assert left.num_clips(row["vid"]) == right.num_clips(row["vid"])


class TestPublishedFiles:
    def test_video_folders_are_concatenated_in_contract_order_after_cutting_to_the_shortest(self, folders):
        store = open_files(folders)
        video = store.video("AO8RW")
        assert video.dtype == np.float32
        assert video.shape == (5, SLOWFAST + CLIP)
        np.testing.assert_array_equal(video[:, :SLOWFAST], values(6, SLOWFAST)[:5])
        np.testing.assert_array_equal(video[:, SLOWFAST:], values(5, CLIP).astype(np.float16).astype(np.float32))
        assert store.num_clips("AO8RW") == 5
        assert store.video_ids == sorted(VIDS)

    def test_rows_are_raw(self, folders):
        norms = np.linalg.norm(open_files(folders).video("AO8RW")[:, :SLOWFAST], axis=1)
        np.testing.assert_allclose(norms, np.linalg.norm(values(6, SLOWFAST)[:5], axis=1), rtol=1e-6)

    def test_text_is_cut_to_the_tokens_of_the_contract(self, folders):
        contract = FeatureContract(**{**CONTRACT.to_dict(), "max_tokens": 3})
        np.testing.assert_array_equal(open_files(folders, contract).text("1"), values(4, TEXT)[:3])

    @pytest.mark.parametrize(
        ("file", "asked"),
        [
            ("s13-d21.avi.npy", "s13-d21"),
            ("s13-d21.avi.npy", "s13-d21.avi"),
            ("s13-d21-cam-002.npz", "s13-d21"),
            ("s13-d21-cam-002.npz", "s13-d21.avi"),
            ("s13-d21.npz", "s13-d21.avi"),
            ("s13-d21-cam-002.avi.npy", "s13-d21"),
        ],
    )
    def test_tacos_names(self, tmp_path, file, asked):
        if file.endswith(".npz"):
            np.savez(tmp_path / file, features=values(3, 2))
        else:
            np.save(tmp_path / file, values(3, 2))
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        np.testing.assert_array_equal(store.video(asked), values(3, 2))
        assert store.video_ids == ["s13-d21"]
        packed = pack_features(store, tmp_path / "packed", progress=False)
        np.testing.assert_array_equal(packed.video(asked), values(3, 2))
        assert packed.has_video(asked)

    def test_two_cameras_are_ambiguous_only_when_neither_is_named(self, tmp_path):
        for camera in (1, 2):
            np.save(tmp_path / f"s1-cam-00{camera}.npy", values(camera, 2))
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        assert len(store.video("s1-cam-002")) == 2
        with pytest.raises(ValueError, match=r"several files for 's1'.*s1-cam-001\.npy, s1-cam-002\.npy"):
            store.video("s1")

    def test_one_array_in_two_formats_is_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", values(3, 2))
        np.savez(tmp_path / "a.npz", features=values(3, 2))
        with pytest.raises(ValueError, match=r"both a\.npy and a\.npz"):
            FeatureStore.from_files(tmp_path, contract=FeatureContract())

    def test_without_encoders_in_the_contract_the_folders_name_them(self, folders):
        contract = open_files(folders, FeatureContract(clip_length=2.0)).contract
        assert contract.video_encoders == ({"name": "slowfast", "dim": SLOWFAST}, {"name": "clip", "dim": CLIP})
        assert contract.text_encoder == {"name": "text", "dim": TEXT}

    def test_widths_are_compared_with_the_contract_at_once(self, folders):
        with pytest.raises(
            ValueError, match=r"slowfast \(6 wide\) \+ clip \(4 wide\).*slowfast \(6 wide\).*one folder for each"
        ):
            FeatureStore.from_files(folders / "slowfast", contract=CONTRACT)
        with pytest.raises(ValueError, match="in the order of the contract"):
            FeatureStore.from_files([folders / "clip", folders / "slowfast"], contract=CONTRACT)
        wider = FeatureContract(**{**CONTRACT.to_dict(), "text_encoder": {"name": "big", "dim": 768}})
        with pytest.raises(ValueError, match=r"big \(768 wide\).*'text' holds rows 5 wide"):
            open_files(folders, wider)

    def test_errors_name_the_place_and_the_remedy(self, folders):
        with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
            FeatureStore.from_files(folders / "nowhere", contract=CONTRACT)
        (folders / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty' holds no \.npz or \.npy files"):
            FeatureStore.from_files(folders / "empty", contract=CONTRACT)
        store = open_files(folders)
        with pytest.raises(FileNotFoundError, match="slowfast' has no features of 'nobody'"):
            store.video("nobody")
        with pytest.raises(ValueError, match="has no array 'rgb', only features"):
            FeatureStore.from_files(folders / "slowfast", contract=FeatureContract(), video_key="rgb")
        with pytest.raises(ValueError, match="pass `contract`"):
            FeatureStore.open(folders / "slowfast")
        with pytest.raises(FileNotFoundError, match="no text features at all"):
            FeatureStore.open(folders / "slowfast", contract=FeatureContract()).text("0")

    @pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
    @pytest.mark.parametrize("suffix", [".npz", ".npy"])
    def test_a_damaged_file_is_named(self, tmp_path, content, suffix):
        np.save(tmp_path / "a.npy", values(3, 2))
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        (tmp_path / "b").with_suffix(suffix).write_bytes(content)
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        for read in (store.video, store.num_clips):
            with pytest.raises(ValueError, match=rf"b\{suffix} cannot be read as features.*again"):
                read("b")

    @pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 4), (3, 0)])
    def test_arrays_of_another_shape_are_refused(self, tmp_path, shape):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=r"must hold an array \(rows, dim\)"):
            FeatureStore.from_files(tmp_path, contract=FeatureContract())

    def test_objects_are_not_unpickled(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((2, 2), np.float32))
        np.save(tmp_path / "b.npy", np.array([[print, 1]], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"b\.npy cannot be read"):
            FeatureStore.from_files(tmp_path, contract=FeatureContract()).video("b")


class TestEndOfText:
    """Where the sentence ends in a file that holds all rows of the encoder."""

    def store(self, tmp_path, token_counts=None, text_rows="to_end_of_text", **arrays):
        (tmp_path / "video").mkdir(exist_ok=True)
        (tmp_path / "text").mkdir(exist_ok=True)
        np.save(tmp_path / "video" / "v.npy", values(3, 2))
        np.savez(tmp_path / "text" / "qid7.npz", **arrays)
        contract = FeatureContract(max_tokens=32, text_rows=text_rows)
        return FeatureStore.from_files(
            tmp_path / "video", tmp_path / "text", contract=contract, token_counts=token_counts
        )

    def test_a_short_file_holds_tokens_only(self, tmp_path):
        assert len(self.store(tmp_path, last_hidden_state=values(12, TEXT)).text("7")) == 12

    def test_token_counts_cut_a_full_one(self, tmp_path):
        store = self.store(tmp_path, token_counts={"7": 9}, last_hidden_state=values(77, TEXT))
        np.testing.assert_array_equal(store.text("7"), values(77, TEXT)[:9])

    def test_a_sentence_cut_by_the_encoder_keeps_all_its_rows(self, tmp_path):
        assert len(self.store(tmp_path, token_counts={"7": 90}, last_hidden_state=values(77, TEXT)).text("7")) == 32

    def test_counts_that_contradict_the_file_are_refused(self, tmp_path):
        store = self.store(tmp_path, token_counts={"7": 13}, last_hidden_state=values(12, TEXT))
        with pytest.raises(ValueError, match=r"'7' has 13 tokens, but .*qid7.npz holds 12 rows"):
            store.text("7")

    def test_an_attention_mask_in_the_file(self, tmp_path):
        mask = np.arange(77) < 11
        assert len(self.store(tmp_path, last_hidden_state=values(77, TEXT), attention_mask=mask).text("7")) == 11

    def test_a_pooled_row_tells_the_end_token(self, tmp_path):
        rows = values(77, TEXT)
        pooled = rows[9].astype(np.float16)
        assert len(self.store(tmp_path, last_hidden_state=rows, pooler_output=pooled).text("7")) == 10

    def test_zero_rows_are_padding(self, tmp_path):
        rows = values(77, TEXT)
        rows[14:] = 0
        assert len(self.store(tmp_path, last_hidden_state=rows).text("7")) == 14

    def test_without_any_sign_it_is_an_error_and_never_a_guess(self, tmp_path):
        store = self.store(tmp_path, last_hidden_state=values(77, TEXT), pooler_output=values(TEXT, seed=3))
        with pytest.raises(ValueError, match=r"77 rows, and nothing tells tokens from padding.*count_tokens"):
            store.text("7")
        with pytest.raises(ValueError, match="nothing tells tokens from padding"):
            store.require([{"qid": "7", "vid": "v", "query": "x", "duration": 3.0}])

    def test_all_rows_keeps_padding_up_to_the_maximum(self, tmp_path):
        store = self.store(tmp_path, text_rows="all", last_hidden_state=values(77, TEXT))
        np.testing.assert_array_equal(store.text("7"), values(77, TEXT)[:32])

    def test_packing_keeps_what_is_known_of_the_end(self, tmp_path):
        store = self.store(tmp_path, token_counts={"7": 40}, last_hidden_state=values(77, TEXT))
        packed = pack_features(store, tmp_path / "packed", progress=False)
        assert len(packed.text("7")) == 32
        longer = FeatureContract(**{**packed.contract.to_dict(), "max_tokens": 77})
        assert len(FeatureStore.from_packed(tmp_path / "packed", longer).text("7")) == 40

    def test_count_tokens_includes_what_the_tokenizer_adds(self):
        def tokenizer(sentences):
            return {"input_ids": [[0, *range(len(sentence.split())), 1] for sentence in sentences]}

        assert count_tokens(make_rows(), tokenizer) == {"0": 7, "1": 4, "2": 7}
        assert count_tokens([], tokenizer) == {}


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
        monkeypatch.setattr(packed_features, "_HAS_POSITIONAL_READS", False)
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


class TestRequire:
    def test_a_store_that_fits_passes(self, folders):
        files = open_files(folders)
        packed = pack_features(files, folders / "packed", rows=make_rows(), progress=False)
        for store in (files, packed):
            store.require(make_rows())
            store.require(make_rows(), check_values=True)
            store.require([])

    def test_everything_missing_is_listed_at_once(self, folders):
        files = open_files(folders)
        rows = make_rows() + [
            {"qid": f"x{number}", "vid": f"gone{number}", "query": "q", "duration": 5.0} for number in range(9)
        ]
        pattern = (
            r"(?s)9 of 11 videos are missing from .*slowfast' \+ .*clip': gone0, gone1, gone2, gone3, gone4, \.\.\."
            r".*9 of 12 queries are missing from .*text': x0"
        )
        with pytest.raises(FileNotFoundError, match=pattern):
            files.require(rows)
        with pytest.raises(FileNotFoundError, match=r"9 of 12 queries are missing from .*packed"):
            pack_features(files, folders / "packed", progress=False).require(rows)

    def test_a_video_that_one_folder_lacks_is_missing(self, folders):
        (folders / "clip" / "AO8RW.npy").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 2 videos are missing.*AO8RW"):
            open_files(folders).require(make_rows())

    def test_why_a_video_was_not_encoded_is_said(self, tmp_path):
        with FeatureWriter(tmp_path, CONTRACT) as writer:
            writer.add_failure("gone", "holds no frame")
            writer.finish()
        with pytest.raises(FileNotFoundError, match=r"1 could not be encoded.*gone \(holds no frame\)"):
            FeatureStore.from_packed(tmp_path).require([{"qid": "0", "vid": "gone", "query": "q", "duration": 5.0}])

    def test_widths_of_single_files(self, folders):
        np.save(folders / "clip" / f"{VIDS[1]}.npy", values(6, 7))
        store = open_files(folders)
        pattern = r"clip' is 7 wide, the contract says clip \(4 wide\) \(1 of 2 looked at: NUsG9BgSes0"
        with pytest.raises(ValueError, match=pattern):
            store.require(make_rows())
        with pytest.raises(ValueError, match="is 13 wide, the contract says 10"):
            store.video(VIDS[1])

    def test_folders_of_different_clip_lengths(self, folders):
        for vid in VIDS:
            np.save(folders / "clip" / f"{vid}.npy", values(12, CLIP))
        with pytest.raises(ValueError, match=r"different numbers of clips.*\(2 of 2 looked at"):
            open_files(folders).require(make_rows())

    def test_values_that_are_not_finite_are_found_when_asked(self, folders):
        broken = values(5, CLIP)
        broken[3, 1] = np.nan
        np.save(folders / "clip" / "AO8RW.npy", broken)
        store = open_files(folders)
        store.require(make_rows())
        with pytest.raises(ValueError, match=r"NaN or infinite \(1 of 2 looked at: AO8RW\)"):
            store.require(make_rows(), check_values=True)

    def test_other_sentences_than_those_recorded(self, folders):
        packed = pack_features(open_files(folders), folders / "packed", rows=make_rows(), progress=False)
        rows = make_rows()
        rows[1]["query"] = "she writes"
        with pytest.raises(
            ValueError, match=r"1 of 3 queries have the text features of another sentence.*she reads.*writes"
        ):
            packed.require(rows)
        rows[1]["query"] = " she  reads "
        packed.require(rows)

    def test_a_wrong_join_shows_in_repeated_sentences(self, folders):
        np.savez(folders / "text" / "qid2.npz", last_hidden_state=values(7, TEXT, seed=9))
        with pytest.raises(ValueError, match="1 of 1 repeated sentences have different text features"):
            open_files(folders).require(make_rows())

    def test_a_clip_length_that_cannot_be_is_logged(self, folders, caplog):
        import transformers

        transformers.utils.logging.enable_propagation()
        try:
            open_files(folders).require(make_rows())
            assert not caplog.records
            contract = FeatureContract(**{**CONTRACT.to_dict(), "clip_length": 1.0})
            open_files(folders, contract).require(make_rows())
            assert "cover 50% of their videos" in caplog.text
            assert "1 s a clip, the durations 2 s" in caplog.text
        finally:
            transformers.utils.logging.disable_propagation()


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
            import modeling_bmdetr.data.feature_writer as feature_writer
            from modeling_bmdetr.configuration_bmdetr import FeatureContract

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
