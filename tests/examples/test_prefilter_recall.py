"""The benchmark of the prefilter: what is aligned is kept, and all is kept where as many are kept as there are."""

import json

from examples.benchmarks import prefilter_recall


def test_recall_grows_with_alignment_and_with_the_number_kept(tmp_path, monkeypatch):
    sizes = ["--videos", "40", "--clips", "10", "--dim", "64", "--sentences", "60", "--common", "0"]
    asked = ["--alignment", "0", "0.9", "--keep", "1", "40", "--json", str(tmp_path / "recall.json")]
    monkeypatch.setattr("sys.argv", ["prefilter_recall.py", *sizes, *asked])
    prefilter_recall.main()
    figures = json.loads((tmp_path / "recall.json").read_text())
    of_noise, of_topics = figures["alignment 0.0"], figures["alignment 0.9"]
    assert of_topics["kept 1: recall in percent"] == 100.0
    assert of_noise["kept 1: recall in percent"] < 20.0
    assert of_noise["kept 40: recall in percent"] == 100.0
