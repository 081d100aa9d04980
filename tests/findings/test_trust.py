"""Trust cards of tables where it is known who is best, who is not, and where nobody beats chance."""

from dataclasses import replace

import numpy as np
import pytest

from pellucid.errors import InvalidParameter, LayerWarning, UnknownName
from pellucid.experiments.record import Note
from pellucid.findings.digits import decimals, interval_ends, number
from pellucid.findings.ranking import Contender, Ranking
from pellucid.findings.trust import trust_card
from pellucid.findings.wording import notes_told
from pellucid.report.tables import contender_rows
from tests.tables import fact, results

NOISE = np.array([0.02, -0.02, 0.03, -0.03, 0.01, -0.01, 0.04, -0.04, 0.02, -0.02, 0.01, -0.01])


def card(means, metric="insertion", variants=("original",), layer="input", facts=None, shift=0.0, **settings):
    """The card of methods with these means and noise that differs from method to method."""
    values = {
        ("net", variant, method, layer, metric): mean + np.roll(NOISE, 3 * index) + shift * (variant != "original")
        for variant in variants
        for index, (method, mean) in enumerate(means.items())
    }
    return trust_card(results(values, **({"facts": facts} if facts else {})), "net", **settings)


def verdict(*arguments, **settings):
    (found,) = card(*arguments, **settings).findings
    return found


def methods(contenders):
    return [one.method for one in contenders]


def test_the_best_is_found_with_its_number():
    found = verdict({"random": 0.3, "gradient": 0.5, "gradcam": 0.8})
    assert methods(found.lead.contenders) == ["gradcam", "gradient", "random"]
    assert methods(found.lead.best) == ["gradcam"]
    assert found.lead.floors == ()
    assert found.sentence.startswith("gradcam is best: insertion 0.800 (95 % interval 0.7")
    assert found.sentence.endswith(
        "; score, higher is better); next is gradient with 0.500; a random map (0.300) is beaten."
    )


def test_lower_is_better_where_the_metric_says_so():
    found = verdict({"random": 0.3, "gradient": 0.5, "gradcam": 0.8}, metric="deletion")
    assert methods(found.lead.best) == ["random"]
    found = verdict({"gradient": 0.5, "gradcam": 0.8}, metric="deletion")
    assert methods(found.lead.best) == ["gradient"]
    assert "lower is better" in found.sentence


def test_two_that_cannot_be_told_apart_are_both_best():
    found = verdict({"random": 0.3, "gradient": 0.801, "gradcam": 0.8})
    assert methods(found.lead.best) == ["gradient", "gradcam"]
    assert found.sentence.startswith("gradient and gradcam are best and cannot be told apart: insertion 0.801 (")
    assert found.sentence.endswith("for the first; each beats a random map (0.300).")


def unsure(metric, sign=1):
    """b is told neither from a nor from the random map, and d surely is above it, behind a."""
    means = {"random": 0.3 + NOISE, "a": 0.8 + NOISE[::-1], "b": 0.75 + np.tile([0.9, -0.9], 6), "d": 0.6 - NOISE}
    return {("net", "original", name, "input", metric): sign * values for name, values in means.items()}


def test_of_several_best_it_is_told_which_beat_the_floor():
    (found,) = trust_card(results(unsure("insertion")), "net").findings
    assert methods(found.lead.best) == ["a", "b"]
    assert methods(found.lead.above) == ["a", "d"]
    assert found.sentence.endswith("; of these only a beats a random map (0.300), and so does d.")


def test_a_measure_that_disagrees_tells_which_of_its_best_beat_the_floor():
    insertion = {("net", "original", "d", "input", "insertion"): 0.8 + NOISE}
    insertion |= {("net", "original", "random", "input", "insertion"): 0.3 + NOISE[::-1]}
    (found,) = trust_card(results(insertion | unsure("deletion", -1)), "net").findings
    told = "By deletion, a and b are best, but of these only a beats a random map, and so does d."
    assert found.agreement == told


def test_a_tie_is_with_the_best_and_not_with_its_neighbor():
    """b is not told from a, nor c from b, but c is told from a."""
    base = np.zeros(12)
    wide = np.tile([0.1, -0.1], 6)
    values = {"a": base + 1, "b": base + 0.96 + wide, "c": base + 0.92 + wide * 0.2}
    table = {("net", "original", name, "input", "insertion"): numbers for name, numbers in values.items()}
    (found,) = trust_card(results(table), "net").findings
    assert methods(found.lead.best) == ["a", "b"]


def test_where_random_wins_no_method_beats_chance():
    found = verdict({"random": 0.9, "gradient": 0.5})
    assert found.lead.floors == ("random",)
    assert found.sentence.startswith("No method beats chance: a random map has insertion 0.900 (95 % interval")
    assert found.sentence.endswith("the best method, gradient, 0.500.")
    assert "on faithfulness" in card({"random": 0.9, "gradient": 0.5}).sentence


def test_where_random_is_not_told_from_the_best_no_method_beats_chance():
    found = verdict({"gradient": 0.801, "random(seed=1)": 0.8, "gradcam": 0.5})
    assert found.lead.floors == ("random",)
    assert found.sentence.startswith("No method beats chance")


def test_beside_a_floor_stands_whether_it_is_beaten():
    def notes(values):
        return {row.title: row.cells[0].note for row in contender_rows(verdict(values).lead)}

    assert notes({"random": 0.3, "edges": 0.8, "gradcam": 0.8}) == {
        "random": "beaten", "edges": "not beaten", "gradcam": ""
    }  # fmt: skip
    assert notes({"random": 0.3, "gradcam": 0.3})["random"] == "not beaten"


def test_whoever_is_behind_a_beaten_floor_is_not_among_the_best():
    """Its values differ so much that it is not told from the first, and its mean is below the random map's."""
    wide = 10 * np.roll(NOISE, 6)
    values = {
        ("net", "original", method, "input", "insertion"): mean + noise
        for method, mean, noise in (
            ("gradcam", 0.8, NOISE / 10),
            ("random", 0.75, NOISE / 10),
            ("gradient", 0.7, wide),
        )
    }
    found = trust_card(results(values), "net").findings[0]
    assert methods(found.lead.contenders) == ["gradcam", "random", "gradient"]
    assert methods(found.lead.best) == ["gradcam"]
    assert found.sentence.startswith("gradcam is best: ")


def test_an_edge_filter_is_a_floor_of_its_own():
    found = verdict({"random": 0.1, "gradient": 0.5, "edges": 0.7})
    assert found.lead.floors == ("edges",)
    assert found.sentence.startswith("No method beats an edge filter: a plain edge filter has insertion 0.700")


def test_trainings_are_not_called_images():
    few = {("net", "original", "gradient", "input", "insertion"): [0.1, 0.2]}
    facts = {"insertion": fact("insertion", "faithfulness", True, by_training=True)}
    told = trust_card(results(few, facts=facts), "net")
    assert told.warnings[0] == "Only 2 trainings were graded: take this as a first look."
    assert told.findings[0].sentence.startswith("Too few trainings to say")


def test_floors_alone_are_no_methods():
    assert verdict({"random": 0.1, "edges": 0.7}).sentence.startswith("Only floors were graded, no method")


def test_a_card_without_floors_says_so():
    assert any("with chance" in warning for warning in card({"gradient": 0.5, "gradcam": 0.7}).warnings)
    assert not card({"gradient": 0.5, "random": 0.7}).warnings


def test_few_images_are_a_first_look_and_two_are_too_few():
    few = {("net", "original", "gradient", "input", "insertion"): [0.1, 0.2, 0.3]}
    assert trust_card(results(few), "net").warnings[0].startswith("Only 3 images were graded")
    two = {("net", "original", "gradient", "input", "insertion"): [0.1, 0.2]}
    (found,) = trust_card(results(two), "net").findings
    assert found.sentence == "Too few images to say: insertion needs at least 3 on which it is defined."
    assert found.lead.best == ()


def test_methods_that_are_all_alike_do_not_stand_out():
    found = verdict({"gradient": 0.8, "gradcam": 0.801})
    assert found.sentence.startswith("No method stands out among 2; the first, gradcam, has insertion 0.801 (")


def test_what_does_not_depend_on_the_map_beats_nobody():
    same = {
        ("net", "original", name, "input", "insertion"): [0.1, 0.2, np.nan, 0.4] for name in ("random", "gradcam")
    }
    found = trust_card(results(same), "net")
    assert found.findings[0].sentence.startswith("Every method has the same insertion: 0.2")
    assert found.sentence == "Nothing that was graded tells the maps apart."


def on(images, mean):
    """Values on some of twelve images, undefined on the others."""
    values = np.full(12, np.nan)
    values[images] = mean + NOISE[images]
    return values


def test_what_shares_no_image_with_the_first_is_neither_the_same_nor_behind():
    some, others, every = slice(0, 6), slice(6, 12), slice(0, 12)

    def card_of(**values):
        return trust_card(
            results({("net", "original", m, "input", "insertion"): v for m, v in values.items()}), "net"
        )

    for alike in (0, NOISE):  # also of constant values
        two = card_of(gradient=on(others, 0.9) - alike, gradcam=on(some, 0.1) - alike)
        assert two.findings[0].sentence.startswith(
            "No method stands out among 2; the first, gradient, has insertion 0.9"
        )
        assert two.sentence == "Nothing that was graded tells the maps apart."
    three = card_of(gradient=on(others, 0.9), random=on(some, 0.1), gradcam=on(every, 0.5))
    assert methods(three.findings[0].lead.best) == ["gradient", "random"]
    assert "beaten" not in three.findings[0].sentence


def test_who_agrees_on_few_images_alone_is_not_the_same():
    """0.5 on the three images of both, but 0.8 on average."""
    more = on(slice(0, 12), 0.5) + 0.4 * (np.arange(12) >= 3)
    table = {"gradient": more, "gradcam": on(slice(0, 3), 0.5)}
    (found,) = trust_card(
        results({("net", "original", m, "input", "insertion"): v for m, v in table.items()}), "net"
    ).findings
    assert "same" not in found.sentence


def test_a_value_without_an_interval_is_told_of_the_images_that_have_it():
    table = {"gradient": on(slice(0, 5), 0.8) - NOISE, "random": on(slice(0, 5), 0.3)}
    (found,) = trust_card(
        results({("net", "original", m, "input", "insertion"): v for m, v in table.items()}), "net"
    ).findings
    assert found.sentence.startswith("gradient is best: insertion 0.800 (on each of 5 images; score")


def test_who_is_alone_is_not_best():
    assert card({"gradient": 0.5}).sentence == "Nothing that was graded tells the maps apart."
    values = {("net", "original", "random", "input", "insertion"): 0.3 + NOISE}
    values["net", "original", "gradient", "input", "insertion"] = np.full(12, np.nan)
    assert trust_card(results(values), "net").sentence == "Nothing that was graded tells the maps apart."


def test_methods_that_cannot_be_graded_are_named():
    values = {("net", "original", "gradcam", "input", "insertion"): 0.8 + NOISE}
    values["net", "original", "gradient", "input", "insertion"] = np.full(12, np.nan)
    values["net", "original", "random", "input", "insertion"] = 0.3 + NOISE[::-1]
    (found,) = trust_card(results(values), "net", "input").findings
    assert methods(found.lead.contenders) == ["gradcam", "random"]
    assert found.agreement == "Not graded, since insertion is undefined there: gradient."


# Variants.


def test_variants_are_named_where_only_some_are_meant():
    found = verdict({"random": 0.3, "gradcam": 0.8}, variants=("original", "backward", "forward"), shift=0.2)
    assert [(one.method, one.variant) for one in found.lead.best] == [
        ("gradcam", "backward"),
        ("gradcam", "forward"),
    ]
    assert found.sentence.startswith("gradcam (backward and forward) is best: insertion 1.000")
    found = verdict({"random": 0.3, "gradcam": 0.8}, variants=("original", "backward"))
    assert found.sentence.startswith("gradcam (any variant) is best")


def test_who_is_next_is_another_method_as_in_the_bars_beside():
    values = {"random": 0.1, "gradcam": 0.6, "gradient": 0.3}
    found = verdict(values, variants=("original", "backward"), shift=0.2)
    assert "gradcam (backward) is best" in found.sentence
    assert "; next is gradient (backward) with 0.500" in found.sentence
    found = verdict({"gradcam": 0.6}, variants=("original", "backward"), shift=0.2)
    assert "; next is gradcam (original) with 0.600" in found.sentence


def test_variants_themselves_are_compared_with_the_original():
    metric = "prediction_difference"
    values = {
        ("net", "original", "", "", metric): np.zeros(12), ("net", "backward", "", "", metric): np.zeros(12),
        ("net", "forward", "", "", metric): 12 + 100 * NOISE,
    }  # fmt: skip
    (found,) = trust_card(results(values), "net").findings
    assert [one.variant for one in found.lead.best] == ["original", "backward"]
    assert found.sentence == (
        "By prediction difference, backward does and forward differs: 0 (original), 0 (backward) and "
        "12.0 (forward); 100 x probability, lower is better."
    )


def test_a_variant_whose_few_large_distances_hide_the_others_is_still_another():
    """All are above 0, the original's, though the interval of their mean reaches below it."""
    metric = "prediction_difference"
    values = {
        ("net", "original", "", "", metric): np.zeros(12),
        ("net", "forward", "", "", metric): np.array([0.1] * 11 + [90.0]),
    }
    (found,) = trust_card(results(values), "net").findings
    assert [one.variant for one in found.lead.best] == ["original"]
    assert found.sentence.startswith("By prediction difference, forward differs: 0 (original) and ")


# Several metrics, axes and layers.


def two_metrics(deletion):
    values = {("net", "original", "gradient", "input", "insertion"): 0.8 + NOISE}
    values |= {("net", "original", "random", "input", "insertion"): 0.3 + NOISE[::-1]}
    values |= {
        ("net", "original", name, "input", "deletion"): mean + np.roll(NOISE, index)
        for index, (name, mean) in enumerate(deletion.items())
    }
    (found,) = trust_card(results(values), "net").findings
    return found


def test_the_first_metric_leads_and_the_others_agree_or_not():
    found = two_metrics({"gradient": 0.1, "random": 0.3})
    assert found.lead.metric == "insertion"
    assert found.agreement == "Deletion agrees."
    assert two_metrics({"gradient": 0.4, "random": 0.3}).agreement == "By deletion, random is best."


LOCALIZATION = {
    "mass_outside": fact("mass_outside", "localization", False),
    "pointing_game": fact("pointing_game", "localization", True),
}


def localized(hits):
    """The card of three methods of which gradcam has the least mass outside, and which hit so often of 12."""
    mass = {"random": 0.9, "gradient": 0.5, "gradcam": 0.2}
    values = {
        ("net", "original", name, "input", "mass_outside"): mean + np.roll(NOISE, index)
        for index, (name, mean) in enumerate(mass.items())
    }
    for name, count in hits.items():
        values["net", "original", name, "input", "pointing_game"] = (np.arange(12) < count).astype(float)
    return trust_card(results(values, facts=LOCALIZATION), "net")


@pytest.mark.parametrize(
    ("hits", "told"),
    [
        ({"random": 9, "gradient": 10, "gradcam": 9}, "Pointing game tells no method from a random map."),
        ({"random": 9, "gradient": 1, "gradcam": 9}, "Pointing game tells no method from a random map."),
        ({"gradient": 10, "gradcam": 9}, "Pointing game tells nothing apart."),
        ({"random": 9, "gradient": 9, "gradcam": 9}, "Pointing game tells no method from a random map."),
        ({"random": 1, "gradient": 9, "gradcam": 11}, "Pointing game (2 of 3 are best by it) agrees."),
        ({"random": 1, "gradient": 4, "gradcam": 11}, "Pointing game agrees."),
        (
            {"random": 4, "darkness": 12, "gradient": 8, "gradcam": 8},
            "By pointing game, darkness, gradient and gradcam are best, but of these only darkness beats a random "
            "map.",
        ),
    ],
)
def test_a_tie_of_all_or_with_a_floor_is_neither_agreement_nor_disagreement(hits, told):
    found = localized(hits)
    assert found.findings[0].agreement == told
    assert found.sentence == "gradcam is best for localization, the only question asked."


def test_a_measure_by_which_all_are_best_agrees_with_nothing_though_the_leading_one_tells_of_chance():
    values = {
        ("net", "original", name, "input", "mass_outside"): 0.5 + np.roll(NOISE, index)
        for index, name in enumerate(("random", "gradient", "gradcam"))
    }
    values |= {
        ("net", "original", name, "input", "pointing_game"): (np.arange(12) < 6).astype(float)
        for name in ("random", "gradient", "gradcam")
    }
    found = trust_card(results(values, facts=LOCALIZATION), "net").findings[0]
    assert found.agreement == "Pointing game tells no method from a random map."


def test_a_measure_by_which_a_floor_beats_methods_disagrees():
    found = localized({"random": 11, "gradient": 1, "gradcam": 1})
    assert found.findings[0].agreement == "By pointing game, random is best."
    assert found.sentence == "On localization the measures disagree about who is best."


def test_where_the_leading_measure_alone_tells_no_method_from_chance_that_is_said():
    values = {
        ("net", "original", name, "input", metric): mean + np.roll(NOISE, index)
        for metric, means in {
            "insertion": {"random": 0.5, "gradcam": 0.5},
            "deletion": {"random": 0.5, "gradcam": 0.2},
        }.items()
        for index, (name, mean) in enumerate(means.items())
    }
    found = trust_card(results(values), "net")
    assert found.sentence == "On faithfulness not all measures tell a method from chance."
    assert found.findings[0].agreement == "By deletion, gradcam is best."


def test_the_whole_card_counts_questions():
    values = {
        ("net", "original", method, "input", metric): mean + np.roll(NOISE, index)
        for metric, means in {
            "insertion": {"random": 0.3, "gradient": 0.5, "gradcam": 0.8},
            "total_variation": {"random": 0.9, "gradient": 0.5, "gradcam": 0.2},
            "pointing_game": {"random": 0.9, "gradient": 0.5, "gradcam": 0.2},
        }.items()
        for index, (method, mean) in enumerate(means.items())
    }
    facts = {
        "insertion": fact("insertion", "faithfulness", True),
        "total_variation": fact("total_variation", "noise", False),
        "pointing_game": fact("pointing_game", "localization", True),
    }
    found = trust_card(results(values, facts=facts), "net")
    assert [one.axis for one in found.findings] == ["faithfulness", "localization", "noise"]
    assert found.sentence == (
        "gradcam is among the best on 2 of 3 questions (faithfulness and noise). "
        "No method beats a map that knows nothing of the network on localization."
    )
    assert found.sentence in str(found)
    assert found.findings[0].sentence in str(found)


def test_layers_have_cards_of_their_own():
    values = {}
    for layer, means in {"input": {"a": 0.9, "b": 0.1}, "deep": {"a": 0.2, "b": 0.6}}.items():
        for index, (name, mean) in enumerate(means.items()):
            values["net", "original", name, layer, "insertion"] = mean + np.roll(NOISE, index)
    table = results(values)
    best = {
        layer: methods(trust_card(table, "net", layer).findings[0].lead.best) for layer in (None, "input", "deep")
    }
    assert best == {None: ["a"], "input": ["a"], "deep": ["b"]}
    assert "a at input is best: insertion 0.900" in str(trust_card(table, "net"))
    assert str(trust_card(table, "net", "deep")).startswith("Trust card of net, at deep\n")
    with pytest.raises(UnknownName, match="did you mean deep"):
        trust_card(table, "net", "deeep")
    with pytest.raises(UnknownName, match="unknown model"):
        trust_card(table, "other")


def test_maps_at_one_layer_alone_are_judged_beside_the_same_maps_at_many():
    values = {
        ("net", "original", name, layer, "insertion"): mean + np.roll(NOISE, index)
        for name, layers in {"random": "ab", "gradcam": "ab", "external": "b"}.items()
        for layer in layers
        for index, mean in [(len(name), 0.3 if name == "random" else {"a": 0.4, "b": 0.8}[layer])]
    }
    values["net", "original", "external", "b", "insertion"] = values[
        "net", "original", "gradcam", "b", "insertion"
    ]
    (found,) = trust_card(results(values), "net").findings
    assert found.sentence.startswith("gradcam at b and external at b are best and cannot be told apart")
    (found,) = trust_card(results(values), "net", "a").findings
    assert found.agreement == "Not graded, since they have maps at other layers alone: external."


def test_the_headline_counts_no_question_on_which_measures_disagree():
    def told(deletion):
        values = {
            ("net", "original", name, "input", metric): mean + np.roll(NOISE, index)
            for metric, means in {
                "insertion": {"random": 0.3, "gradient": 0.8},
                "deletion": deletion,
                "total_variation": {"random": 0.9, "gradient": 0.2},
            }.items()
            for index, (name, mean) in enumerate(means.items())
        }
        return trust_card(results(values), "net").sentence

    assert told({"random": 0.5, "gradient": 0.1}) == (
        "gradient is among the best on 2 of 2 questions (faithfulness and noise)."
    )
    assert told({"random": 0.1, "gradient": 0.5}) == (
        "gradient is among the best on 1 of 2 questions (noise). "
        "On faithfulness the measures disagree about who is best."
    )


def test_a_card_needs_no_name_of_the_only_model_and_escapes_itself_for_a_notebook():
    table = results({("net", "original", "<b>", "input", "insertion"): 0.5 + NOISE})
    assert trust_card(table) == trust_card(table, "net")
    html = trust_card(table)._repr_html_()
    assert "<b>:" not in html
    assert "&lt;b&gt;" in html
    two = results({(name, "original", "a", "input", "insertion"): 0.5 + NOISE for name in ("net", "other")})
    with pytest.raises(InvalidParameter, match="name one: net, other"):
        trust_card(two)


# Numbers.


@pytest.mark.parametrize(
    ("spread", "places"),
    [(0.034, 3), (0.34, 2), (3.4, 1), (34.0, 0), (3400.0, 0), (0.0, 3), (np.nan, 3), (1e-9, 6)],
)
def test_numbers_have_two_digits_of_their_uncertainty(spread, places):
    assert decimals(spread) == places


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (0.12345, 2, "0.12"), (12345.6, 0, "12,346"), (-0.5, 1, "−0.5"), (-0.001, 1, "0.0"), (0.0, 3, "0"),
        (1.2e-5, 3, "1.2 × 10⁻⁵"), (-3.4e-12, 3, "−3.4 × 10⁻¹²"), (np.nan, 2, "–"),
    ],
)  # fmt: skip
def test_numbers_as_text(value, places, text):
    assert number(value, places) == text


@pytest.mark.parametrize(
    ("ends", "places", "text"),
    [
        ((0.0006, 0.58), 2, ("0.0006", "0.58")), ((-0.58, -0.0046), 2, ("−0.58", "−0.005")),
        ((0.0, 0.58), 2, ("0", "0.58")), ((0.3, 34.4), 0, ("0.3", "34")), ((2e-5, 0.5), 2, ("2.0 × 10⁻⁵", "0.50")),
        ((np.nan, np.nan), 2, ("–", "–")),
    ],
)  # fmt: skip
def test_an_end_that_is_not_0_is_not_shown_as_0(ends, places, text):
    assert interval_ends(*ends, places) == text


def test_a_metric_by_which_methods_beat_chance_does_not_agree_with_one_by_which_none_does():
    def ranking(*best):
        found = tuple(Contender(name, "original", "input", 0.5, 0.4, 0.6, 9) for name in best)
        return Ranking("m", "m", "share", True, found, found, False)

    tied_with_edges, ahead = ranking("edges", "deeplift"), ranking("deeplift")
    assert not tied_with_edges.agrees(ahead)
    assert not ahead.agrees(tied_with_edges)
    assert ahead.agrees(ranking("deeplift", "gradcam"))
    assert tied_with_edges.agrees(ranking("edges"))


def test_a_card_says_which_classes_the_maps_explain():
    def told(targets):
        table = results({("net", "original", name, "input", "insertion"): 0.5 + NOISE for name in ("a", "random")})
        names = dict(zip(dict.fromkeys(table.table["image"]), targets, strict=False))
        table.table["target"] = table.table["image"].astype(object).map(names)
        return trust_card(table, "net")

    assert told(["cat"] * 12).explained == "The maps explain one class: cat."
    found = told(["cat"] * 7 + ["dog"] * 4 + ["eel"])
    assert found.explained == "The maps explain 3 classes: cat (7 images), dog (4 images) and eel (1 image)."
    assert found.explained in str(found)
    assert found.explained in found._repr_html_()
    assert told([f"class {number}" for number in range(12)]).explained.endswith("and 8 more.")
    table = results({("net", "original", "a", "input", "insertion"): 0.5 + NOISE})
    assert (
        trust_card(table, "net").explained
        == "The maps explain 2 classes: class 0 (6 images) and class 1 (6 images)."
    )
    assert trust_card(replace(table, table=table.table.drop(columns="target")), "net").explained == ""


def test_a_poor_stand_in_among_the_best_is_said_to_be_one():
    values = {
        ("net", variant, method, "input", "insertion"): mean + np.roll(NOISE, 3 * index)
        for index, (variant, method, mean) in enumerate(
            [("original", "gradient", 0.5), ("forward", "gradient", 0.8), ("original", "random", 0.3)]
        )
    }
    plain = results(values)
    told = "Under forward the network is another, whose maps do not explain the original."
    assert told not in str(trust_card(plain))
    record = plain.record.model_copy(update={"poor": {"net": ("forward",)}, "noticed": {"net": ("it is so",)}})
    found = trust_card(replace(plain, record=record))
    assert found.findings[0].sentence.endswith(told)
    assert found.sentence.endswith(told)
    assert found.warnings[-1] == "It is so."
    worse = record.model_copy(update={"poor": {"net": ("original",)}})
    assert "another" not in str(trust_card(replace(plain, record=worse)))  # it is not among the best


def test_with_few_images_nothing_is_told_from_chance_and_no_method_is_called_beaten():
    values = {
        ("net", "original", name, "input", "insertion"): np.array(numbers)
        for name, numbers in {"random": [0.0, 0.0, 0.0, 0.0], "gradient": [0.1, 0.2, 2.5, 1.2]}.items()
    }
    told = trust_card(results(values)).findings[0].sentence
    assert told.startswith("With 4 images no method can be told to be better than chance: a random map has in")
    assert "beats" not in told


def test_what_is_to_be_known_of_methods_is_told_once_with_layers_and_variants():
    empty = [
        Note("EmptyMapWarning", "rectgrad", layer, variant, "net")
        for variant in ("original", "backward")
        for layer in ("a", "b", "c", "d")
    ]
    flat = Note("FlatMapWarning", "gradient", "e", "original", "net")
    rule = Note("RuleWarning", "guided", "", "original", "net", "one product may be an activation")
    told = notes_told([*empty, flat, rule])
    assert told == [
        "rectgrad under original and backward is zero everywhere at a, b, c, ... (1 more) for some images; "
        "lower its threshold, if it has one, or choose another layer",
        "gradient has one value at all places, so its map is of one color, at e for some images; there are no "
        "places any more, or only an average over them comes after: take an earlier layer, or gradcam or "
        "input_x_gradient where there are places",
        "guided: one product may be an activation",
    ]
    other = flat._replace(model="other")
    assert [one.split(": ")[0] for one in notes_told([flat, other])] == ["net", "other"]


@pytest.mark.parametrize("warning", ["ImageMapWarning", "SkippedLayerWarning"])
def test_what_lies_in_a_method_is_told_of_no_number_of_images(warning):
    note = Note(warning, "gradcam", "input")
    for counts in (None, {note: 3}):
        [told] = notes_told([note], "photo", counts, 3)
        assert "at input; " in told
        assert "photos" not in told


def test_of_a_users_function_no_cause_is_told():
    for warning, what in (
        ("FlatMapWarning", "of one color, at input"),
        ("EmptyMapWarning", "everywhere at input"),
    ):
        for method in ("own.py:f", "smoothed(own.py:f, samples=2)"):
            [told] = notes_told([Note(warning, method, "input")], "photo", {Note(warning, method, "input"): 1}, 1)
            assert told.startswith(method)
            assert told.endswith(f"{what}; its function gives it so")


def test_what_is_alike_of_several_methods_is_told_once_and_of_how_many_images():
    notes = [Note("FlatMapWarning", method, layer) for method in ("a", "b", "c") for layer in ("x", "y")]
    rules = [Note("RuleWarning", method, "", text="a product") for method in ("a", "b")]
    for numbers, told in (
        ([5] * 6, "at x, y for all 5 photos; "),
        ([2] * 6, "at x, y for 2 of 5 photos; "),
        ([2, 3] * 3, "at x, y for up to 3 of 5 photos; "),
    ):
        flat, rule = notes_told([*notes, *rules], "photo", dict(zip(notes, numbers, strict=True)), 5)
        flat_of = "each of a, b and c has one value at all places, so its map is of one color, "
        assert flat.startswith(flat_of + told)
        assert rule == "a and b: a product"
    apart = notes_told(notes, "photo", dict(zip(notes, [5, 5, 5, 5, 1, 1], strict=True)), 5)
    assert [one.split(" has")[0] for one in apart] == ["each of a and b", "c"]
    assert "of one color, at x, y; " in notes_told(notes[:2], "photo", dict.fromkeys(notes, 1), 1)[0]


def test_every_warning_about_a_layer_has_a_sentence():
    kinds, found = [LayerWarning], set()
    while kinds:
        own = [kind for kind in kinds.pop().__subclasses__() if kind.__module__ == LayerWarning.__module__]
        kinds += own
        found |= {kind.__name__ for kind in own}
    assert found
    for name in found:
        assert "gradient" in notes_told([Note(name, "gradient", "input")])[0]


def test_the_way_out_of_a_lattice_is_that_of_its_layers():
    first, hidden = (Note("PatternWarning", "gradient", layer, "backward") for layer in ("input", "layer1"))
    [at_input], [below], [both] = map(notes_told, ([first], [hidden], [first, hidden]))
    assert "at input for some images; the first convolution prints it: backward_with_first" in at_input
    assert "index" not in at_input
    assert "at layer1 for some images; something steps over places" in below
    assert "first convolution" not in below
    assert "first convolution" in both
    assert "elsewhere something steps" in both
