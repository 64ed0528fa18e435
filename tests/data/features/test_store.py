"""Feature stores: published layouts, the end of a sentence, and what `require` finds."""

import os
import re

import numpy as np
import pytest
import torch
import transformers
from feature_cases import CLIP, CONTRACT, SLOWFAST, TEXT, VIDS, make_rows, open_files, values, write_folders

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, FeatureWriter, count_tokens, pack_features
from modeling_bmdetr.data.features.array_files import read_arrays


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


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
        ("file", "suffix", "asked"),
        [
            ("s13-d21.avi.npy", "", "s13-d21"),
            ("s13-d21.avi.npy", ".avi", "s13-d21"),
            ("s13-d21-cam-002.npz", "-cam-002", "s13-d21"),
            ("s13-d21-cam-002.avi.npy", "-cam-002.avi", "s13-d21"),
            ("s13-d21-cam-002.avi.npy", "", "s13-d21-cam-002"),
        ],
    )
    def test_files_named_after_video_files_and_cameras(self, tmp_path, file, suffix, asked):
        if file.endswith(".npz"):
            np.savez(tmp_path / file, features=values(3, 2))
        else:
            np.save(tmp_path / file, values(3, 2))
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract(), video_suffix=suffix)
        np.testing.assert_array_equal(store.video(asked), values(3, 2))
        assert store.video_ids == [asked]
        packed = pack_features(store, tmp_path / "packed", progress=False)
        np.testing.assert_array_equal(packed.video(asked), values(3, 2))
        assert packed.has_video(asked)

    @pytest.mark.parametrize(
        "asked", ["kitchen-cam-2", "kitchen", "intro.mov", "intro", "INTRO.mp4", "kitchen-cam-1.mp4", "../intro.mp4"]
    )
    def test_no_name_gets_the_features_of_another(self, tmp_path, asked):
        for name in ("kitchen-cam-1", "intro.mp4", "outro.avi", "outro.mp4"):
            np.save(tmp_path / f"{name}.npy", values(3, 2))
        files = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        assert files.video_ids == ["intro", "kitchen-cam-1", "outro.avi", "outro.mp4"]
        packed = pack_features(files, tmp_path / "packed", progress=False)
        for store in (files, packed):
            if asked == "intro":  # the video whose file is intro.mp4
                assert store.has_video(asked)
                continue
            assert not store.has_video(asked)
            hint = "'(intro|kitchen)" if asked.startswith(("kitchen", "intro")) else ""
            with pytest.raises(FileNotFoundError, match=rf"no features of '{re.escape(asked)}'.*{hint}"):
                store.video(asked)
            with pytest.raises(FileNotFoundError, match=rf"1 of 1 videos are missing.*{re.escape(asked)}.*{hint}"):
                store.require([{"qid": "0", "vid": asked, "query": "q"}])
        with pytest.raises(ValueError, match=r"several files for 'outro': outro.mp4.npy, outro.avi.npy"):
            files.video("outro")
        assert not packed.has_video("outro")

    def test_what_macos_puts_beside_a_file_is_not_looked_at(self, tmp_path):
        np.save(tmp_path / "v.npy", values(3, 2))
        (tmp_path / "._v.npy").write_bytes(b"\x00\x05\x16\x07")
        assert FeatureStore.from_files(tmp_path, contract=FeatureContract()).video_ids == ["v"]

    @pytest.mark.parametrize("kind", ["complex", "bool", "sparse", "meta", "quantized", "no tensor"])
    def test_tensors_that_are_no_plain_numbers_are_refused(self, tmp_path, kind):
        """The real part of a complex tensor would be another array, without a word."""
        plain = torch.from_numpy(values(3, 2))
        tensor = {
            "complex": lambda: plain.to(torch.complex64),
            "bool": lambda: plain > 0,
            "sparse": plain.to_sparse,
            "meta": lambda: plain.to("meta"),
            "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            "no tensor": lambda: [1.0, 2.0],
        }[kind]()
        torch.save({"features": tensor}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"a\.pt cannot be read as features"):
            read_arrays(tmp_path / "a.pt", "features")

    def test_tensors_are_read_and_nothing_in_their_files_is_run(self, tmp_path):
        torch.save(torch.from_numpy(values(3, 2)), tmp_path / "a.pt")
        torch.save({"features": torch.from_numpy(values(4, 2)).half(), "other": 1}, tmp_path / "b.pt")
        (tmp_path / "c.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        np.testing.assert_array_equal(store.video("a"), values(3, 2))
        assert store.num_clips("b") == 4
        with pytest.raises(ValueError, match=r"c\.pt cannot be read as features"):
            store.video("c")
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    def test_a_pipe_is_no_file_of_features(self, tmp_path):
        np.save(tmp_path / "a.npy", values(3, 2))
        os.mkfifo(tmp_path / "b.npy")  # whoever opens it waits for ever
        store = FeatureStore.from_files(tmp_path, contract=FeatureContract())
        assert store.video_ids == ["a"]

    def test_files_that_state_more_than_they_hold_are_refused(self, tmp_path):
        torch.save(torch.zeros(1).expand(200_000, 100_000), tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"a\.pt cannot be read as features .*states 80000000000 bytes"):
            FeatureStore.from_files(tmp_path, contract=FeatureContract())
        mask = np.zeros(2**25, np.uint8)
        np.savez_compressed(tmp_path / "b.npz", features=values(3, 2), attention_mask=mask)
        with pytest.raises(ValueError, match=r"b\.npz states 33554560 bytes of 'attention_mask'"):
            read_arrays(tmp_path / "b.npz", "features", ("attention_mask",))

    def test_one_array_in_two_formats_is_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", values(3, 2))
        np.savez(tmp_path / "a.npz", features=values(3, 2))
        with pytest.raises(ValueError, match=r"both 'a\.npy' and 'a\.npz'"):
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
        with pytest.raises(ValueError, match=r"empty' holds no \.npz, \.npy or \.pt files"):
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
        for qid in ("8", "9"):
            np.savez(tmp_path / "text" / f"qid{qid}.npz", last_hidden_state=values(77, TEXT))
        store = self.store(tmp_path, last_hidden_state=values(77, TEXT))  # folders are listed once
        rows = [{"qid": qid, "vid": "v", "query": f"x {qid}", "duration": 3.0} for qid in "789"]
        with pytest.raises(ValueError, match=r"nothing tells tokens from padding.*\(3 of 3 looked at: 7, 8, 9\)"):
            store.require(rows)

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
        with pytest.raises(ValueError, match=r"\(rows >= 1, 10\), received \(6, 13\): it was made by another encoder"):
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
