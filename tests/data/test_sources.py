"""The same rows from every kind of place, in order, one at a time, each with where it stands."""

import gzip
import json
import tracemalloc
from itertools import islice

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_bytes import comma_separated, jsonl, parquet, rows

from exoalign.data.adapters import ADAPTERS
from exoalign.data.adapters.schema import Adapter
from exoalign.data.formats import open_records, read_groups, read_prompts, read_texts, stream_groups
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source, attempts
from exoalign.data.table import write_table
from exoalign.errors import DataError
from exoalign.groups import Group

ROWS = [{"prompt": f"p{i}", "chosen": f'a, "b"\n{i}', "rejected": "日本語 🙂"} for i in range(3)]


def indented(rows, key=None):
    return json.dumps(rows if key is None else {"version": [1, {}], key: rows, "more": None}, indent=1).encode()


# `indented` puts a bracket on line 1 and each row on 5 lines; under a key there are 5 lines before it ("version" takes 4).
# A CSV row takes two lines, as its reply does.
@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("r.jsonl", jsonl(*ROWS), [":1", ":2", ":3"]),
        ("r.txt", jsonl(*ROWS), [":1", ":2", ":3"]),
        ("r.jsonl.gz", gzip.compress(jsonl(*ROWS)), [":1", ":2", ":3"]),
        ("r.json", indented(ROWS), [":2", ":7", ":12"]),
        ("r.json", b"\xef\xbb\xbf \r\n" + indented(ROWS) + b"\n", [":3", ":8", ":13"]),
        ("r.json", json.dumps(ROWS, ensure_ascii=False).encode(), [":1", ":1", ":1"]),
        ("r.json.gz", gzip.compress(indented(ROWS, "data")), [":7", ":12", ":17"]),
        ("r.json", indented(ROWS, "instances"), [":7", ":12", ":17"]),
        ("r.csv", comma_separated(ROWS), [":2", ":4", ":6"]),
        ("r.csv", b"\xef\xbb\xbf" + comma_separated(ROWS).replace(b"\r\n", b"\n\n"), [":3", ":6", ":9"]),
        ("r.csv.gz", gzip.compress(comma_separated(ROWS)), [":2", ":4", ":6"]),
        ("r.parquet", parquet(ROWS), [", row 1", ", row 2", ", row 3"]),
    ],
)
def test_a_file(tmp_path, name, content, places):
    path = tmp_path / name
    path.write_bytes(content)
    assert list(rows(str(path))) == [(f"{path}{place}", row) for place, row in zip(places, ROWS, strict=True)]


def test_columns_of_csv_that_are_no_text(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text('rating,label,completions,score_chosen,note\n3,true,"[""a"", 1]",,7\n-1e3,FALSE,,0.5,\n')
    assert [row for _, row in rows(str(path))] == [
        {"rating": 3, "label": True, "completions": ["a", 1], "score_chosen": None, "note": "7"},
        {"rating": -1000, "label": False, "completions": None, "score_chosen": 0.5, "note": ""},
    ]


def test_conversations_in_csv_and_what_only_looks_like_one(tmp_path):
    turns = [{"role": "user", "content": 'Hi, "you"\n[1]'}]
    for column in ("prompt", "chosen", "rejected", "completion"):
        cells = [json.dumps(turns), f" {json.dumps(turns)}\n"]
        texts = ["[1, 2]", "[]", "[{}]", '[{"role": 1}, 2]', "[sic] {", "[" * 9999, ""]
        (tmp_path / "r.csv").write_bytes(comma_separated([{"id": "1", column: cell} for cell in cells + texts]))
        assert [row[column] for _, row in rows(str(tmp_path / "r.csv"))] == [turns, turns, *texts]
    (tmp_path / "r.csv").write_bytes(comma_separated([{"text": json.dumps(turns), "note": json.dumps(turns)}]))
    assert [row["text"] for _, row in rows(str(tmp_path / "r.csv"))] == [json.dumps(turns)]
    pair = {"prompt": turns} | {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    (tmp_path / "r.csv").write_bytes(comma_separated([{name: json.dumps(value) for name, value in pair.items()}]))
    ((group,), _) = read_groups(tmp_path / "r.csv")
    assert (group.prompt, group.completions) == ((("user", turns[0]["content"]),), ("chosen", "rejected"))


def test_a_reply_in_csv_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    row = {"prompt": "p", "chosen": "a" * 200_000, "rejected": "b"}
    (tmp_path / "r.csv").write_bytes(comma_separated([row]))
    assert [found for _, found in rows(str(tmp_path / "r.csv"))] == [row]


def test_parquet_keeps_its_place_over_batches(tmp_path):
    (tmp_path / "r.parquet").write_bytes(parquet([{"prompt": f"p{i}"} for i in range(600)]))
    found = list(rows(str(tmp_path / "r.parquet")))
    assert [where.rsplit(" ")[-1] for where, _ in found] == [str(i) for i in range(1, 601)]
    assert [row["prompt"] for _, row in found] == [f"p{i}" for i in range(600)]


def test_messages_of_parquet_need_no_more_than_role_and_content(tmp_path):
    """Arrow gives every message the keys of all; one without a value is none."""
    prompt = [{"role": "user", "content": "Hi", "name": None}]
    (tmp_path / "r.parquet").write_bytes(parquet([{"prompt": prompt}]))
    assert read_prompts(tmp_path / "r.parquet")[0].prompt == (("user", "Hi"),)
    (tmp_path / "r.parquet").write_bytes(parquet([{"prompt": [{**prompt[0], "name": "Ann"}]}]))
    with pytest.raises(DataError, match="row 1: turn 1 of `prompt` holds `name` too"):
        read_prompts(tmp_path / "r.parquet")


def test_malformed_rows_are_passed_over_by_who_counts_them(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('[{"prompt": "a"},\n{"prompt": NaN},\n{"prompt": "\\ud800"}, 5, {"prompt": "b"}]')
    found = list(attempts(str(path)))
    assert [row if isinstance(row, dict) else type(row) for _, row in found] == [
        {"prompt": "a"},
        DataError,
        DataError,
        DataError,
        {"prompt": "b"},
    ]
    path = tmp_path / "r.csv"
    path.write_text("prompt,rating\na,1\nb\nc,x\nd,nan\ne,2\n")
    found = list(attempts(str(path)))
    assert [where.rsplit(":")[-1] for where, row in found if isinstance(row, DataError)] == ["3", "4", "5"]
    assert len(found) == 5


# Folders


def test_a_folder_of_files_in_order_of_their_names(tmp_path):
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{2 - number}.jsonl").write_bytes(jsonl(row))
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")
    assert [row["prompt"] for _, row in rows(str(tmp_path))] == ["p2", "p1", "p0"]


def test_a_split_of_a_folder(tmp_path):
    (tmp_path / "harmless" / "data").mkdir(parents=True)
    (tmp_path / "harmless" / "data" / "train-0-of-2.jsonl").write_bytes(jsonl(ROWS[0]))
    (tmp_path / "harmless" / "data" / "train-1-of-2.parquet").write_bytes(parquet(ROWS[1:2]))
    (tmp_path / "harmless" / "test").mkdir()
    (tmp_path / "harmless" / "test" / "rows.csv").write_bytes(comma_separated(ROWS[2:]))
    folder = str(tmp_path)
    assert [row for _, row in rows(Source(folder, split="train"))] == ROWS[:2]
    assert [row for _, row in rows(Source(folder, split="test", subset="harmless"))] == ROWS[2:]
    with pytest.raises(DataError, match="has files of the splits test, train; name one as `split`"):
        list(rows(folder))
    with pytest.raises(DataError, match=r"no file of the split `dev`; found harmless/data/train-0-of-2\.jsonl, harm"):
        list(rows(Source(folder, split="dev")))
    with pytest.raises(DataError, match="helpful: no such folder; expected the subset `helpful` there"):
        list(rows(Source(folder, subset="helpful")))


@pytest.mark.parametrize(
    "name", ["b.tsv", "b.arrow", "b.jsonl.zst", "b.csv.zip", "b.XLSX", "b.JSONL", "b.parquet.gz", "data/b.feather"]
)
def test_data_that_is_not_read_is_not_passed_over(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / name).write_bytes(b"")
    message = f"^{tmp_path / name}: files of this ending are not read, and the folder would be read without it; expected .jsonl"
    with pytest.raises(DataError, match=message):
        list(rows(str(tmp_path)))
    (tmp_path / "a.jsonl").write_bytes(jsonl(*ROWS))
    (tmp_path / "train.jsonl").write_bytes(jsonl(ROWS[0]))
    with pytest.raises(DataError, match=message):
        list(rows(str(tmp_path)))
    assert [row for _, row in rows(Source(str(tmp_path), split="train"))] == ROWS[:1]  # it is of no split


@pytest.mark.parametrize(
    "other",
    ["heldout.jsonl", "held-out-1.jsonl", "holdout/a.jsonl", "testing.jsonl", "eval_2.jsonl", "development.csv"],
)
def test_splits_of_a_folder_are_not_mixed(tmp_path, other):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(comma_separated(ROWS[:1]) if other.endswith(".csv") else jsonl(ROWS[0]))
    (tmp_path / "training-0.jsonl").write_bytes(jsonl(*ROWS[1:]))
    (tmp_path / "trainer.txt").write_text("no data")
    with pytest.raises(DataError, match=r"has files of the splits .*training.*; name one as `split`"):
        list(rows(str(tmp_path)))
    assert [row for _, row in rows(Source(str(tmp_path), split="training"))] == ROWS[1:]


def test_an_empty_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(*ROWS))
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jsonl: no rows"):
        list(rows(str(tmp_path)))


def test_groups_of_a_run_keep_all_that_they_hold(tmp_path):
    groups = [Group("p", ("a", "b"), winner=1, completion_ids=((1,), (2,)), provenance={"source": "s:1"})]
    write_table(groups, tmp_path / "g.parquet")
    aside = SetAside()
    assert list(stream_groups(Source(str(tmp_path / "g.parquet")), aside)) == groups
    assert aside.read == 1


def test_what_a_place_has_no_use_for_is_refused(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(jsonl(*ROWS))
    for option in ("split", "subset", "revision"):
        with pytest.raises(DataError, match=f"is a file, which has no `{option}`; leave `{option}` out"):
            list(rows(Source(str(tmp_path / "r.jsonl"), **{option: "x"})))
    with pytest.raises(DataError, match="is a folder, which has no `revision`"):
        list(rows(Source(str(tmp_path), revision="x")))


# Data sets of `datasets`


def test_a_saved_data_set(tmp_path):
    folder = str(tmp_path / "saved")
    scored = [{**row, "rewards": [0.5, 1.0]} for row in ROWS]
    datasets.Dataset.from_list(scored).with_format("numpy").save_to_disk(folder)  # lists would come as arrays
    assert list(rows(folder)) == [(f"{folder}, row {i}", row) for i, row in enumerate(scored, 1)]
    with pytest.raises(DataError, match="holds one data set, of split None, not `train`; leave `split` out"):
        list(rows(Source(folder, split="train")))


def test_splits_that_begin_alike_are_told_apart(tmp_path):
    """As in the folder of ultrafeedback_binarized, whose splits have the same columns and hold the same pairs."""
    names = ("train_prefs-00000-of-00001", "train_sft-00000-of-00001", "test_prefs-00000-of-00001")
    for name, row in zip(names, ROWS, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    folder = str(tmp_path)
    assert [row for _, row in rows(Source(folder, split="train_prefs"))] == ROWS[:1]
    with pytest.raises(DataError, match="has files of the splits train_prefs, train_sft; name one"):
        list(rows(Source(folder, split="train")))
    with pytest.raises(DataError, match="has files of the splits test_prefs, train_prefs, train_sft; name one"):
        list(rows(Source(folder)))
    assert [row for _, row in rows(Source(folder, split="test"))] == ROWS[2:]  # there is only one
    for i, row in enumerate(ROWS):
        (tmp_path / f"shards_{i}.jsonl").write_text(json.dumps(row))
    assert [row for _, row in rows(Source(folder, split="shards"))] == ROWS


def test_a_saved_data_set_with_splits(tmp_path):
    folder = str(tmp_path / "saved")
    halves = {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(halves).save_to_disk(folder)
    assert list(rows(Source(folder, split="test"))) == [(f"{folder}[test], row 1", ROWS[2])]
    for split, found in ((None, "none was named"), ("dev", "`dev` was asked for")):
        with pytest.raises(DataError, match=f"has the splits train, test and {found}; name one as `split`"):
            list(rows(Source(folder, split=split)))


def test_a_saved_data_set_is_held_to_the_same_values(tmp_path):
    datasets.Dataset.from_dict({"rewards": [[1.0], [float("nan")]]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="saved, row 2: `rewards` holds nan"):
        list(rows(str(tmp_path / "saved")))


@pytest.mark.parametrize("broken", ["dataset_info.json", "state.json", "data-00000-of-00001.arrow"])
def test_a_saved_data_set_that_is_damaged(tmp_path, broken):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / broken).write_bytes(b"{")
    with pytest.raises(DataError, match="saved: cannot be read as a saved data set: "):
        list(rows(str(tmp_path / "saved")))


# The hub, of which there is none here: what it is asked for, and what comes of its answers


@pytest.fixture
def hub(monkeypatch):
    """Answers `load_dataset` with rows, splits or an error, and records how it was asked."""
    asked = []

    def answer_with(answer):
        def load_dataset(*args, **options):
            asked.append((args, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return answer_with


def stream(rows, fail_at=None):
    def generate():
        for number, row in enumerate(rows):
            if number == fail_at:
                raise OSError("reset by peer https://host/file?X-Signature=secret")
            yield row

    return datasets.IterableDataset.from_generator(generate)


def test_the_hub_is_asked_for_a_stream(hub):
    asked = hub(stream(ROWS))
    source = Source("owner/name", split="train", subset="harmless-base", revision="abc123")
    assert list(rows(source)) == [(f"owner/name@abc123[train], row {i}", row) for i, row in enumerate(ROWS, 1)]
    options = {"name": "harmless-base", "split": "train", "revision": "abc123", "streaming": True}
    assert asked == [(("owner/name",), options)]  # and so never for `trust_remote_code`


def test_the_hub_is_asked_once_for_the_kind_and_the_records(hub):
    asked = hub(stream([{"other": 1}, *ROWS]))
    aside = SetAside()
    kind, records = open_records(Source("owner/name", split="train"), aside)
    assert kind == "pairs"
    assert [group.where for group in records] == [f"owner/name[train], row {i}" for i in (2, 3, 4)]
    assert (aside.read, aside.malformed, len(asked)) == (4, 1, 1)


def test_a_data_set_of_the_hub_with_splits(hub):
    hub(datasets.IterableDatasetDict({"train": stream(ROWS)}))
    assert next(rows("owner/name")) == ("owner/name[train], row 1", ROWS[0])
    hub(datasets.IterableDatasetDict({"train": stream(ROWS), "test": stream(ROWS)}))
    with pytest.raises(DataError, match=r"owner/name: has the splits train, test and none was named; name one"):
        list(rows("owner/name"))


def test_what_the_hub_says_no_to_is_told_with_what_to_do(hub):
    hub(datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub\nmore"))
    with pytest.raises(DataError) as error:
        list(rows("owner/name"))
    assert str(error.value).startswith(
        "owner/name: cannot be read: DatasetNotFoundError: Dataset 'owner/name' doesn't exist on the Hub."
    )
    assert "HF_HUB_OFFLINE" in str(error.value)
    hub(stream([]))
    with pytest.raises(DataError, match=r"owner/name\[train\]: no rows"):
        list(rows(Source("owner/name", split="train")))


def test_a_stream_that_breaks_off_names_the_row_and_no_signature(hub):
    hub(stream(ROWS, fail_at=2))
    with pytest.raises(DataError, match=r"owner/name\[train\], row 3: cannot be read: OSError: reset by peer") as error:
        list(rows(Source("owner/name", split="train")))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["owner", "-owner/name", "owner/.name", "owner/name/more", "/owner/name", "../owner/name", "owner/rows.jsonl", ""],
)
def test_what_is_no_hub_id_is_not_asked_for(hub, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = hub(stream(ROWS))
    with pytest.raises(DataError, match=r"no such file or folder, and no hub id|no data files"):
        list(rows(path))
    assert asked == []


# Adapters


@pytest.fixture
def adapter(monkeypatch):
    """One more adapter, which makes a row of prompts from each letter of `raw`."""

    def convert(row, where):
        return [{"prompt": letter} for letter in row["raw"]]

    letters = Adapter("letters", "owner/letters", "prompts", {"raw": str}, convert)
    monkeypatch.setitem(ADAPTERS, "letters", letters)


def test_an_adapter_makes_rows_of_raw_ones(tmp_path, adapter):
    path = str(tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").write_bytes(jsonl({"raw": "ab"}, {"raw": "c"}))
    prompts = [row[:2] for row in read_prompts(Source(path, "letters"))]
    assert prompts == [("a", f"{path}:1"), ("b", f"{path}:1"), ("c", f"{path}:2")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"other": 1}, "no `raw`"),
        ({"raw": ""}, "the adapter `letters` makes nothing of this row"),
        ({"raw": "a\0"}, "`raw` holds a NUL"),
    ],
)
def test_what_an_adapter_refuses_is_an_error_of_its_row(tmp_path, adapter, raw, message):
    path = str(tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").write_bytes(jsonl({"raw": "a"}, raw, {"raw": "b"}))
    found = list(attempts(Source(path, "letters")))
    assert [where for where, row in found if isinstance(row, DataError)] == [f"{path}:2"]
    with pytest.raises(DataError, match=f"r.jsonl:2: {message}"):
        list(rows(Source(path, "letters")))


# Memory


def most_held(consume) -> int:
    tracemalloc.start()
    try:
        consume()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("suffix", "number"), [("jsonl", 200_000), ("csv", 40_000)])
def test_many_rows_are_never_held_together(tmp_path, suffix, number):
    """Watched are the first rows, where all would be read ahead, and the last, where read ones would still be held: watching is
    slow. 10,000 rows take 5 MB, buffers some 100 kB."""
    path = tmp_path / f"rows.{suffix}"
    with path.open("w") as file:
        if suffix == "csv":
            file.write("prompt,chosen,rejected\n")
        for i in range(number):
            pair = {"prompt": f"Question {i}", "chosen": "yes", "rejected": "no"}
            file.write((json.dumps(pair) if suffix == "jsonl" else ",".join(pair.values())) + "\n")
    aside = SetAside()
    groups = stream_groups(str(path), aside)
    count = 0

    def read(rows):
        nonlocal count
        count += sum(1 for _ in islice(groups, rows))

    assert most_held(lambda: read(10_000)) < 1 << 20
    read(number - 20_000)
    assert most_held(lambda: read(10_001)) < 1 << 20
    assert (count, aside.read) == (number, number)


def test_parquet_holds_a_batch(tmp_path):
    row = {"text": "x" * 1000}
    with pq.ParquetWriter(tmp_path / "r.parquet", pa.schema([("text", pa.string())])) as writer:
        for i in range(20):
            writer.write_table(pa.Table.from_pylist([{"text": f"{i}-{j}" + row["text"]} for j in range(1000)]))
    assert most_held(lambda: [None for _ in rows(str(tmp_path / "r.parquet"))]) < 4 << 20  # of 20 MB


def test_the_real_files_stream_as_json_reads_them(shared_data):
    path = shared_data / "rt_polarity_test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        written = [json.loads(line) for line in file]
    assert [row for _, row in rows(str(path))] == written
    assert [row.text for row in read_texts(path)] == [row["text"] for row in written]
    assert len(read_groups(Source(str(shared_data), split="hh_harmless_train"), limit=5)[0]) == 5
