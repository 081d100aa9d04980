"""Two runs whose differences are known, paired over the images that both have."""

from dataclasses import replace

import numpy as np
import pytest

from pellucid.errors import InvalidData, InvalidParameter, UnknownName
from pellucid.experiments.record import apart
from pellucid.findings.comparison import classes_apart, compare, left_out
from pellucid.findings.intervals import interval
from tests.tables import FACTS, NAN, results

NOISE = np.array([0.02, -0.02, 0.03, -0.03, 0.01, -0.01, 0.04, -0.04])


def run(means, model="net", layer="input"):
    """A run of one layer: by (method, metric) the values or their mean."""
    return results({(model, "original", *key[:1], layer, key[1]): value + NOISE for key, value in means.items()})


def test_differences_are_paired_and_told_by_the_metrics_direction():
    """Images differ by far more than the runs do: only the pairs tell."""
    apart = np.arange(8.0)
    before = run({("a", "insertion"): apart, ("a", "deletion"): apart, ("b", "insertion"): apart})
    after = run({("a", "insertion"): apart + 0.5, ("a", "deletion"): apart + 0.5, ("b", "insertion"): apart})
    found = compare(before, after)
    assert found["difference"].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-12)
    assert found["verdict"].tolist() == ["better", "worse", "not told apart"]
    assert compare(after, before)["verdict"].tolist() == ["worse", "better", "not told apart"]
    assert found["images"].tolist() == [8, 8, 8]


def test_hits_are_told_apart_by_the_sign_test_as_in_a_report():
    """Of 8 images 5 more are hit by the other: p = 2 / 2^5; 6 more: p = 2 / 2^6."""
    key = ("net", "original", "a", "input", "insertion")
    for more, verdict in ((5, "not told apart"), (6, "better")):
        hits = [1.0] * more + [0.0] * (8 - more)
        assert compare(results({key: [0.0] * 8}), results({key: hits}))["verdict"].tolist() == [verdict]


def within(values, model="net"):
    """A run by (variant, method): the values of one metric at one layer."""
    return results({(model, *key, "input", "insertion"): value + NOISE for key, value in values.items()})


def test_the_variants_of_one_run_are_paired_with_the_first():
    apart = np.arange(8.0)
    found = compare(
        within({("original", "a"): apart, ("backward", "a"): apart + 0.5, ("forward", "a"): apart - 0.5})
    )
    assert found.index.get_level_values("variant").tolist() == ["backward", "forward"]
    assert found["one"].tolist() == pytest.approx([3.5, 3.5])
    assert found["difference"].tolist() == pytest.approx([0.5, -0.5])
    assert found["verdict"].tolist() == ["better", "worse"]


def test_methods_and_models_of_one_run_are_paired_with_the_one_named():
    apart = np.arange(8.0)
    two = {("net", "original", method, "input", "insertion"): apart + at for method, at in (("a", 0), ("b", 0.5))}
    other = {("finer", *key[1:]): values - 1 for key, values in two.items()}
    run = results(two | other)
    found = compare(run, against="b")
    assert found.index.droplevel(["variant", "metric"]).tolist() == [("net", "a"), ("finer", "a")]
    assert found["difference"].tolist() == pytest.approx([-0.5, -0.5])
    found = compare(run, against="finer")
    assert found.index.droplevel(["variant", "metric"]).tolist() == [("net", "a"), ("net", "b")]
    assert found["difference"].tolist() == pytest.approx([1.0, 1.0])


def test_each_part_of_one_run_is_taken_at_its_own_best_layer():
    keys = [("net", variant, "a", layer, "insertion") for variant in ("original", "backward") for layer in "xy"]
    run = results({key: at + NOISE for key, at in zip(keys, (0.0, 1.0, 3.0, 2.0), strict=True)})
    [found] = compare(run).to_dict("records")
    assert (found["layer"], found["other_layer"], found["difference"]) == ("y", "x", pytest.approx(2.0))
    [found] = compare(run, layer="y").to_dict("records")
    assert (found["layer"], found["other_layer"], found["difference"]) == ("y", "y", pytest.approx(1.0))


def test_what_one_run_does_not_have_is_refused():
    alone, pair = within({("original", "a"): 0.0}), within({("original", "a"): 0.0, ("original", "b"): 1.0})
    with pytest.raises(InvalidParameter, match=r"give a second run, or one of .*a and b as against \(--against\)"):
        compare(pair)
    with pytest.raises(InvalidParameter, match=r"the variant original alone: give a second run$"):
        compare(alone)
    with pytest.raises(UnknownName, match="unknown variant, method or model of the run 'c'"):
        compare(pair, against="c")
    with pytest.raises(InvalidParameter, match="the run has the method a alone"):
        compare(alone, against="a")
    with pytest.raises(InvalidParameter, match="against a: this compares parts of one run, and here are two"):
        compare(alone, pair, against="a")
    with pytest.raises(UnknownName, match="unknown layer of the run 'nowhere'"):
        compare(pair, layer="nowhere", against="a")


def test_variants_that_explain_their_own_classes_are_told():
    run = within({("original", "a"): 0.0, ("forward", "a"): 1.0})
    assert classes_apart(run) == []
    changed = run.table.copy()
    changed["target"] = changed["target"].astype(object)
    last = (changed["variant"] == "forward") & (changed["image"] == changed["image"].iloc[0])
    changed["target"] = changed["target"].str.replace("class", "kind")
    run = replace(run, table=changed.copy())
    changed.loc[last, "target"] = "a bird"
    [told] = classes_apart(replace(run, table=changed))
    name = changed["image"].iloc[0]
    assert told == (
        f"the explained class of 1 of the 8 images in common, such as {name}: "
        f"'{run.table['target'].iloc[0]}' by original and 'a bird' by forward"
    )


def test_the_interval_is_that_of_the_differences():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8))
    found = compare(run({("a", "insertion"): first}), run({("a", "insertion"): second})).iloc[0]
    low, high = interval((second - first)[None])
    assert (found["low"], found["high"]) == pytest.approx((low[0], high[0]), rel=1e-9)


def test_no_interval_is_wider_than_values_can_be_apart():
    """Of shares of 0 and 1 a difference lies between -1 and 1, whatever the skew of six."""
    key, shares = ("net", "original", "a", "input", "insertion"), [1.0] * 5 + [0.0]
    ended = {**FACTS, "insertion": FACTS["insertion"].model_copy(update={"ends": (0.0, 1.0)})}
    [found] = compare(results({key: [0.0] * 6}, facts=ended), results({key: shares}, facts=ended)).to_dict(
        "records"
    )
    low, high = interval(np.array([shares]))
    assert high[0] > 1
    assert (found["low"], found["high"]) == (pytest.approx(low[0]), 1.0)


def test_distances_above_a_bound_are_told_from_it_and_no_interval_passes_it():
    values = [0.01] * 7 + [60.0]
    found = compare(run({("a", "deletion"): -NOISE}), run({("a", "deletion"): np.array(values) - NOISE}))
    [row] = found.to_dict("records")
    assert (row["low"], row["verdict"]) == (0.0, "worse")
    assert interval(np.array([values]))[0][0] < 0


def test_only_images_with_both_values_count_and_both_means_are_over_them():
    key = ("net", "original", "a", "input", "insertion")
    found = compare(results({key: [1.0, 2.0, NAN, 9.0, 5.0]}), results({key: [2.0, 4.0, 7.0, NAN]})).iloc[0]
    assert found["images"] == 2
    assert (found["one"], found["other"], found["difference"]) == (1.5, 3.0, 1.5)
    assert found["verdict"] == "not compared: fewer than 3 images"


def test_rows_without_a_common_image_are_not_compared():
    """Both runs have all images, but a metric is defined for one half of them in each, and not for the same."""
    one, other = (
        results(
            {
                ("net", "original", "a", "input", "insertion"): values,
                ("net", "original", "a", "input", "deletion"): NOISE,
            }
        )
        for values in ([1.0] * 4 + [NAN] * 4, [NAN] * 4 + [2.0] * 4)
    )
    found = compare(one, other)
    assert found["images"].tolist() == [0, 8]
    assert found["verdict"].tolist() == ["not compared: no image in common has both values", "not told apart"]


def test_other_explained_classes_are_told():
    """In tests/tables.py images explain classes 0 and 1 in turn."""
    one = run({("a", "insertion"): 0.0})
    assert classes_apart(one, run({("a", "insertion"): 1.0}, model="finer")) == []
    other = run({("a", "insertion"): 0.0}, model="finer")
    other.table["target"] = other.table["target"].cat.rename_categories({"class 1": "toaster"})
    assert classes_apart(one, other) == [
        "the explained class of 4 of the 8 images in common, such as image-1: 'class 1' in the first and "
        "'toaster' in the second; one run has no names of classes, so they may be the same"
    ]
    labels = [
        replace(found, record=found.record.model_copy(update={"spec": {"target": "label"}}))
        for found in (one, other)
    ]
    assert classes_apart(*labels) == []
    without = replace(other, table=other.table.drop(columns="target"))
    assert classes_apart(one, without) == []


def test_rows_of_one_run_alone_are_left_out_and_single_models_may_have_other_names():
    before = run({("a", "insertion"): 0.0, ("b", "insertion"): 0.0})
    after = run({("b", "insertion"): 1.0, ("c", "insertion"): 1.0}, model="finer")
    assert list(compare(before, after).index) == [("net", "original", "b", "insertion")]
    with pytest.raises(
        InvalidData,
        match="nothing to pair: they share models, variants and metrics, but not the "
        "method: a in the first, c in the second; grade the same in both runs",
    ):
        compare(run({("a", "insertion"): 0.0}), run({("c", "insertion"): 0.0}))


def test_what_one_run_alone_graded_is_said_to_be_left_out():
    """A method of another setting is another method, and no row tells of it."""
    shared = {("random", "insertion"): 1.0}
    one = run({**shared, ("smoothed(gradient, samples=2)", "insertion"): 1.0})
    other = run({**shared, ("smoothed(gradient, samples=6)", "insertion"): 2.0}, model="other")
    assert compare(one, other).index.get_level_values("method").tolist() == ["random"]
    assert left_out(one, other) == [
        f"not compared, since the {which} run alone has the method smoothed(gradient, samples={samples}): "
        f"grade the same in the {other_run} run, too, or all in one run"
        for which, other_run, samples in (("first", "second", 2), ("second", "first", 6))
    ]
    assert left_out(one, one) == []


def test_several_that_one_run_alone_graded_are_named_as_several():
    one, other = run({(name, "insertion"): 1.0 for name in "abc"}), run({("a", "insertion"): 1.0})
    assert left_out(one, other) == [
        "not compared, since the first run alone has the methods b and c: grade the same in the second run, "
        "too, or all in one run"
    ]


def test_combinations_of_one_run_alone_are_said_as_a_whole():
    one = run({("a", "insertion"): 1.0, ("b", "deletion"): 1.0})
    other = run({("a", "insertion"): 1.0, ("a", "deletion"): 1.0, ("b", "insertion"): 1.0})
    assert left_out(one, other) == [
        "not compared, since the first run alone has net, original, b, deletion: grade the same in the second "
        "run, too, or all in one run",
        "not compared, since the second run alone has net, original, a, deletion and net, original, b, insertion: "
        "grade the same in the first run, too, or all in one run",
    ]


def test_runs_of_two_variants_are_told_what_they_share_and_how_to_grade_both():
    one, other = (
        results({("net", variant, "a", "input", "insertion"): NOISE}) for variant in ("original", "backward")
    )
    with pytest.raises(InvalidData) as told:
        compare(one, other)
    assert str(told.value) == (
        "the two runs have nothing to pair: they share models, methods and metrics, but not the variant: original "
        "in the first, backward in the second; grade both variants in one run: --variant original "
        "--variant backward"
    )


def test_runs_that_share_all_parts_but_no_combination_are_told_so():
    one, other = (
        run({("a", metric): 0.0, ("b", another): 0.0})
        for metric, another in (("insertion", "deletion"), ("deletion", "insertion"))
    )
    with pytest.raises(InvalidData, match="but no row of all four"):
        compare(one, other)


def test_each_run_has_its_own_best_layer_unless_one_is_given():
    def layered(input_, deep):
        key = ("net", "original", "a", "{}", "insertion")
        return results(
            {(*key[:3], name, key[4]): value + NOISE for name, value in (("input", input_), ("deep", deep))}
        )

    found = compare(layered(0.0, 1.0), layered(3.0, 2.0)).iloc[0]
    assert (found["layer"], found["other_layer"], found["difference"]) == ("deep", "input", pytest.approx(2.0))
    found = compare(layered(0.0, 1.0), layered(3.0, 2.0), layer="deep").iloc[0]
    assert (found["layer"], found["other_layer"], found["difference"]) == ("deep", "deep", pytest.approx(1.0))


def test_a_layer_of_neither_run_or_of_one_alone_is_refused():
    """What grades variants stands at no layer, and would be all that is left."""
    one, other = (
        results(
            {
                ("net", "original", "a", layer, "insertion"): NOISE,
                ("net", "original", "", "", "prediction_difference"): 0 * NOISE,
            }
        )
        for layer in ("layer4", "layer3")
    )
    with pytest.raises(UnknownName, match="unknown layer of the runs 'layer9'; did you mean layer4 or layer3"):
        compare(one, other, "layer9")
    for runs, lacks, has in (((one, other), "second", "first"), ((other, one), "first", "second")):
        with pytest.raises(InvalidData, match=f"the {lacks} run has no maps at layer4, as the {has} has; name"):
            compare(*runs, "layer4")
        with pytest.raises(InvalidData, match=f"the {lacks} run has no maps at layer4"):
            left_out(*runs, "layer4")


def told_apart(models, methods, files=({}, {}), places=("in the first", "in the second")):
    """In what two runs of these models and methods differ."""
    records = [
        results({("net", "original", "a", "input", "insertion"): NOISE}).record.model_copy(
            update={
                "identity": {"models": of, "methods": names, "files": read},
                "spec": {"models": [{"name": name} for name in of]},
            }
        )
        for of, names, read in zip(models, methods, files, strict=True)
    ]
    return list(apart(*records, places))


def test_two_runs_of_one_model_each_differ_in_the_model_and_not_in_its_weights_too():
    one, other = {"resnet20": 64 * "0"}, {"resnet56": 64 * "1"}
    assert told_apart((one, other), (["a"], ["a"])) == [
        "the model is resnet20 in the first and resnet56 in the second"
    ]
    assert told_apart((one, one | other), (["a"], ["a"])) == ["models: resnet56 in the second alone"]
    assert told_apart((one, {"resnet20": 64 * "1"}), (["a"], ["a"])) == [
        "weights and preprocess.resnet20: not the same"
    ]


def test_methods_of_two_runs_are_compared_by_name_wherever_they_stand():
    one = {"net": 64 * "0"}
    files = ({"a.py:f": 64 * "2", "b.py:g": 64 * "3"}, {"b.py:g": 64 * "4"})
    assert told_apart((one, one), (["random", "a.py:f", "b.py:g"], ["edges", "random", "b.py:g"]), files) == [
        "methods: a.py:f in the first alone; edges in the second alone",
        "files.b.py:g: not the same",
    ]
    assert told_apart((one, one), (["random", "edges"], ["edges", "random"])) == ["methods: in another order"]
    assert told_apart((one, one), (["random"], ["random"])) == []


def test_how_a_run_is_cut_and_drawn_makes_no_difference():
    one, other = run({("a", "insertion"): 0.0}), run({("a", "insertion"): 0.0})
    settings = ({"images_per_cell": 16, "pictures": 4}, {"images_per_cell": 5, "pictures": 8})
    records = [
        each.record.model_copy(update={"identity": {**each.record.identity, **of}})
        for each, of in zip((one, other), settings, strict=True)
    ]
    assert list(apart(*records, ("in the first", "in the second"))) == []


def test_other_images_are_not_paired():
    one, other = run({("a", "insertion"): 0.0}), run({("a", "insertion"): 0.0})
    other.table["image"] = other.table["image"].cat.rename_categories(lambda name: f"other-{name}")
    with pytest.raises(InvalidData, match="no images in common"):
        compare(one, other)
