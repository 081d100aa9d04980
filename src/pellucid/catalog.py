"""The only lists: methods, metrics, variants. One line here reaches the CLI, the docs and the contract tests."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, cast

from .errors import InvalidParameter, PellucidError, UnknownName, brief, near_names
from .kinds import require_settings
from .methods.base import Method
from .methods.baselines import Edges, Random
from .methods.cam import GradCAM
from .methods.external import external
from .methods.gradient import (
    attnlrp,
    deconvnet,
    deeplift,
    gradient,
    guided_backprop,
    input_x_gradient,
    lrp_epsilon,
    rectgrad,
)
from .metrics.base import Criterion
from .metrics.edges import EdgeDifferentiation, VisualCoherence
from .metrics.faithfulness import Deletion, Insertion
from .metrics.fidelity import PredictionDifference, TargetDifference, Top1
from .metrics.localization import BackgroundMass, EnergyOutside, MassOutside, PatchMass, PointingGame
from .metrics.noise import Checkerboard, RawTotalVariation, TotalVariation
from .metrics.occlusion import BackgroundOcclusion, ObjectOcclusion
from .metrics.sanity import CascadeDeletion, CascadeHOG, CascadeInsertion, CascadeSpearman, CascadeSSIM
from .metrics.sensitivity import AdversarialChange, ClassChange
from .sampling import Noise, Path, Sampling
from .training.criteria import Kar, RandomRemoval, Roar, TrainingOcclusion
from .variants.base import VARIANTS as VARIANTS
from .variants.base import Variant
from .variants.surrogate import load_surrogate


@dataclass(frozen=True)
class Entry:
    """A method of the catalogue: what it is, as a function or as text made of other names, and its source.

    ``shows`` says in one plain sentence what is seen on a map, ``magnitudes`` the same where its sign is taken
    away; of text it is put together from its parts. ``{reference}`` stands for the image that a method compares
    with.
    """

    made_of: Callable[..., Method] | str
    source: str
    shows: str = ""
    magnitudes: str = ""

    @property
    def formula(self) -> str:
        """The text form, for methods made of others."""
        return self.made_of if isinstance(self.made_of, str) else ""


_NIELSEN = "Nielsen et al., Performance Evaluation of Combination Methods"
_RECTGRAD = "Kim et al., Why are Saliency Maps Noisy? (RectGrad)"
_SMOOTH = "Herdt et al., Smooth Deep Saliency"
_SANITY = "Adebayo et al., Sanity Checks for Saliency Maps"

_NO_SIGN = "Look at the strength alone: where it is red or blue says nothing for or against the class."

METHODS: Mapping[str, Entry] = {
    "random": Entry(
        Random,
        f"{_NIELSEN}, Sec. III: the floor of every comparison",
        "Noise that knows nothing of the network: a map of use looks different from it.",
    ),
    "edges": Entry(
        Edges,
        f"{_SANITY}: an edge detector, blind to the model",
        "The edges of the photo, which know nothing of the network: a map of use tells more than they do.",
    ),
    "gradient": Entry(
        gradient,
        f"{_NIELSEN}, Eq. 1",
        "Where slightly larger values, at the input brighter pixels, would raise (red) or lower (blue) the score "
        "of the class the most.",
        "Where slightly other values, at the input brighter or darker pixels, would change the score of the class "
        "the most; not whether they would raise or lower it.",
    ),
    "input_x_gradient": Entry(
        input_x_gradient,
        f"{_RECTGRAD}, Grad*Input",
        "What each place adds to the score or takes from it, if the network were as simple as it is nearby.",
        "How much each place adds to the score or takes from it, if the network were as simple as it is nearby; "
        "not which of the two.",
    ),
    "smoothgrad": Entry("smoothed(gradient, samples=15, std=0.15)", f"{_NIELSEN}, Eq. 2"),
    "integrated_gradients": Entry("integrated(gradient, steps=50)", f"{_NIELSEN}, Eq. 3"),
    "guided_backprop": Entry(
        guided_backprop,
        f"{_NIELSEN}, Eq. 4",
        f"Fine structures that excite the units behind the class, much alike for whatever class. {_NO_SIGN}",
    ),
    "deconvnet": Entry(
        deconvnet,
        f"{_RECTGRAD}, Claim 1",
        f"Structures that excite the units behind the class, much alike for whatever class. {_NO_SIGN}",
    ),
    "rectgrad": Entry(
        rectgrad,
        f"{_RECTGRAD}, Sec. 4.1, q = 98, padding trick",
        "What remains of the gradient when each layer lets only its strongest contributions pass. " + _NO_SIGN,
    ),
    "rectgrad_prr": Entry("rectgrad(proportional=True)", f"{_RECTGRAD}, Appendix C.2"),
    "deeplift": Entry(
        deeplift,
        f"{_SMOOTH}, Sec. 3.3; rescale rule of Shrikumar et al.",
        "What each place adds to the score or takes from it, compared with {reference}.",
    ),
    "lrp_epsilon": Entry(
        lrp_epsilon,
        f"{_RECTGRAD}, baselines: epsilon = 1e-4",
        "The score, shared out backwards layer by layer to the places that it came from.",
    ),
    "attnlrp": Entry(
        attnlrp,
        "Achtibat et al., AttnLRP",
        "The score, shared out backwards through attention to the places that it came from.",
    ),
    "gradcam": Entry(
        GradCAM,
        f"{_SMOOTH}, Sec. 3.3; Selvaraju et al.",
        "Which places of a layer speak for the class; made for the last layers, whose places see most of it.",
    ),
    "smoothed_integrated_gradients": Entry("smoothed(integrated_gradients)", f"{_NIELSEN}, Eq. 6"),
    "smoothed_guided_backprop": Entry("smoothed(guided_backprop)", f"{_NIELSEN}, Eq. 7"),
    "smoothed_input_x_gradient": Entry(
        "smoothed(input_x_gradient, samples=50)", f"{_SANITY}; the report's Input-SG"
    ),
    "integrated_smoothgrad": Entry("integrated(smoothgrad)", f"{_NIELSEN}, Eq. 8"),
    "integrated_guided_backprop": Entry("integrated(guided_backprop)", f"{_NIELSEN}, Eq. 9"),
}

COMBINATORS: Mapping[str, type[Sampling]] = {
    "smoothed": Noise,
    "integrated": Path,
}

_STRENGTH = "have no sign: look at the strength alone."
_SMOOTHED = {  # what noise adds to the sentence of what it wraps, by its moment
    "mean": "Averaged over noisy copies of {}, so that single pixels count less.",
    "squared": f"Of it the squares, averaged over noisy copies of {{}}; squares {_STRENGTH}",
    "variance": f"Of it the variance over noisy copies of {{}}; variances {_STRENGTH}",
}
_INTEGRATED = "Summed along the way from {reference} to this one."
_INTEGRATED_GRADIENT = (
    "What each place adds to the score or takes from it on the way from {reference} to this one: of the network "
    "as it is, the places together add up to the difference of the two scores."
)
_REFERENCES = {
    "zero": "an empty image (zeros: gray where images are normalized, else black)",
    "blur": "a blurred copy of the image",
}

METRICS: Mapping[str, type[Criterion]] = {
    metric.name: metric
    for metric in (
        TotalVariation,
        RawTotalVariation,
        Checkerboard,
        Insertion,
        Deletion,
        CascadeSSIM,
        CascadeSpearman,
        CascadeHOG,
        CascadeInsertion,
        CascadeDeletion,
        MassOutside,
        EnergyOutside,
        PointingGame,
        BackgroundMass,
        PatchMass,
        BackgroundOcclusion,
        ObjectOcclusion,
        AdversarialChange,
        ClassChange,
        EdgeDifferentiation,
        VisualCoherence,
        Top1,
        PredictionDifference,
        TargetDifference,
        Roar,
        Kar,
        RandomRemoval,
        TrainingOcclusion,
    )
}

_FILE = re.compile(r"""(?P<path>[^(),'"=\s][^(),'"=]*?\.py):(?P<name>[^\W\d]\w*)""")
_IN_FILE = "file "  # before a function's place, where its hexadecimal digits stand for a name
_WORD = re.compile(  # an unquoted word after =, or what is quoted
    r"""'[^']*'|"[^"]*"|=\s*(?!(?:True|False|None)\s*[,)])(?P<word>[^\W\d]\w*(?:\.\w+)*)(?=\s*[,)])"""
)
_SEPARATORS = ";|+/&"  # what is taken for the comma between two names, and is none
_LONGEST, _DEEPEST = 2000, 100  # characters of a text, and levels of what is nested in it
SURROGATE = ".safetensors"  # how the path of a surrogate's file ends


def method(text: str, **settings: Any) -> Method:
    """A method by its catalogue name or as text, such as ``smoothed(integrated(gradient, steps=50))``.

    ``"path/to/file.py:function"`` makes a method of any function (model, images, targets) -> maps; it takes
    settings and combinators as others do: ``smoothed(file.py:function(layer=layer4.1), samples=5)`` (see
    ``external``).

    Settings go to the outermost part that takes them: ``method("smoothed_integrated_gradients", steps=20,
    samples=5)``. The text is parsed, never evaluated.

    Raises:
        UnknownName: no such method, combinator or parameter (nearest names shown).
        InvalidParameter: text that is no method, or a value out of range.
    """
    built, unused = _built(_parsed(text), dict(settings))
    if unused:
        raise _unknown_parameter(repr(text), next(iter(unused)), _parameters(_parsed(text)))
    return built


def meaning(text: str, magnitudes: bool = False) -> str:
    """What the maps of a method, given as text, show with its settings: plain sentences for whoever looks at them.

    ``magnitudes``: a map's values are those of the method's without their signs.
    """
    if ".py:" in text:
        return f"What the function {text.strip()} gives."
    entry, made = _innermost(_parsed(text)), method(text)
    is_absolute = bool(getattr(made, "absolute", False))
    has_moments = any(getattr(sampling, "moment", "mean") != "mean" for sampling in made.samplings)
    has_none = is_absolute or has_moments or magnitudes
    said = (entry.magnitudes if has_none else "") or entry.shows
    for number, sampling in enumerate(reversed(made.samplings)):
        is_path = isinstance(sampling, Path)
        if is_path and number == 0 and entry is METHODS["gradient"] and not is_absolute:
            said = _INTEGRATED_GRADIENT
        elif is_path:
            said = f"{said} {_INTEGRATED}"
        elif isinstance(sampling, Noise):
            of = "the image" if sampling.space == "input" else "the layer's values"
            said = f"{said} {_SMOOTHED[sampling.moment].format(of)}"
        said = said.replace("{reference}", _reference(sampling))
    return said.replace("{reference}", _reference(made))


def _reference(part: Method | Sampling) -> str:
    """What a method or a path compares an image with, in words."""
    baseline = getattr(part, "baseline", "zero")
    return _REFERENCES.get(baseline, f"an image that is {baseline} everywhere")


def may_be_negative(text: str) -> bool:
    """Whether maps of a method, given as text, may have negative values, on whatever image."""
    return ".py:" in text or method(text).goes_below_zero  # nobody knows it of a user's function


def _innermost(node: ast.expr) -> Entry:
    """The method of the catalogue that combinators wrap."""
    name, inner, _ = _call(node)
    if inner is not None:
        return _innermost(inner)
    entry = METHODS[name]
    return _innermost(_parsed(entry.formula)) if entry.formula else entry


def metric(text: str, **settings: Any) -> Criterion:
    """A metric by its catalogue name or as text with settings, such as ``insertion(steps=28)``.

    Raises:
        UnknownName: no such metric or parameter (nearest names shown).
        InvalidParameter: text that is no metric, or a value out of range.
    """
    name, inner, written = _call(_parsed(text, "metric"), "metric")
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS)
    if inner is not None:
        raise InvalidParameter(f"{name} takes nothing inside; write {name}(parameter=value)")
    return cast(Criterion, _call_checked(name, METRICS[name], written | settings))


def variant(text: str) -> Variant:
    """A variant by its catalogue name, or a surrogate by the path of its .safetensors file.

    Raises:
        UnknownName: no such variant (nearest names shown).
        InvalidWeights: no such file, or it is broken or holds no surrogate.
        InvalidParameter: a file that would be called as a variant of the catalogue is.
    """
    name = variant_name(text)
    if name == text:
        if text not in VARIANTS:
            raise UnknownName("variant", text, [*VARIANTS, f"path/to/surrogate{SURROGATE}"])
        return VARIANTS[text]
    if name in VARIANTS:
        raise InvalidParameter(f"{text} would be called {name!r}, as a variant of every model is; rename the file")
    return load_surrogate(text)


def variant_name(text: str) -> str:
    """What tables and files call a variant: its name, or the stem of its file."""
    return FilePath(text).stem if text.endswith(SURROGATE) else text


def _parsed(text: str, kind: str = "method") -> ast.expr:
    ways = "a name, or smoothed(...) and integrated(...) around one" if kind == "method" else "a name"
    refusal = InvalidParameter(f"{brief(text)} is no {kind}; write {ways}{_meant(text, kind)}")
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise refusal
    try:
        tree = ast.parse(_as_python(text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: null characters
        why = _mistake(text, kind)
        raise (InvalidParameter(f"{brief(text)} is no {kind}: {why}") if why else refusal) from error
    if _depth(tree) > _DEEPEST:
        raise refusal
    return tree


def _meant(text: Any, kind: str) -> str:
    """Which names may be meant by a text that begins with a word, and where all are listed."""
    word = re.match(r"\s*([\w-]{1,40})", text) if isinstance(text, str) else None
    known = METRICS if kind == "metric" else {**METHODS, **COMBINATORS}
    near = [] if word is None else [word[1]] if word[1] in known else near_names(word[1], known)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{meant} (all: pellucid list {kind}s)"


def _mistake(text: str, kind: str) -> str:
    """What is amiss in a text that stands for nothing: a bracket, or what is between names; else empty."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return "a bracket is closed that was not opened"
        if depth == 0 and (letter.isspace() or letter in _SEPARATORS):
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        return "a bracket is not closed"
    known = METRICS if kind == "metric" else {**METHODS, **COMBINATORS}
    names = [part for part in parts if part]
    if len(names) < 2 or not all(name.partition("(")[0] in known for name in names):
        return ""
    if names[0] in COMBINATORS:
        return f"write {names[0]}({names[1]})"
    return f"it names several: in a command separate {kind}s by a comma, {','.join(names)}"


def _as_python(text: str) -> str:
    """The text in Python's grammar: functions in files as names, and words after ``=`` in quotes."""
    # A path is no name in Python's grammar; written in hexadecimal digits it is one, and can be read back.
    named = on_files(text, lambda path, name: f"{_IN_FILE}{path}:{name}".encode().hex().join(["f_", ""]))
    return _WORD.sub(lambda found: found[0] if found["word"] is None else f"={found['word']!r}", named)


def on_files(text: str, change: Callable[[str, str], str]) -> str:
    """The text with every ``path/to/file.py:name`` in it replaced by what ``change`` makes of path and name."""
    path, _, name = text.rpartition(":")
    # A path may hold brackets and commas, so a text that is a file's function as a whole is taken as it stands.
    if path.endswith(".py") and name.isidentifier() and ("(" not in path or FilePath(path).is_file()):
        return change(path, name)
    return _FILE.sub(lambda found: change(found["path"], found["name"]), text)


def _depth(tree: ast.AST) -> int:
    """How deep a syntax tree is, found without recursion."""
    # Python's own walk, and what follows it, would exceed the depth of recursion on a text made to do so.
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _built(node: ast.expr, settings: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method a syntax tree stands for, and the settings that found no taker."""
    name, inner, written = _call(node)
    if (place := _place_of(name)) is not None:
        if inner is not None:
            raise InvalidParameter(f"{place} takes no method inside; only {' and '.join(COMBINATORS)} wrap one")
        return external(place, **(written | settings)), {}
    if name in COMBINATORS:
        if inner is None:
            raise InvalidParameter(f"{name}(...) needs a method inside, such as {name}(gradient)")
        # Settings from outside go to the outermost level that
        # has a parameter of that name, what is left further in.
        own, rest = _taken(COMBINATORS[name], settings)
        wrapped, rest = _built(inner, rest)
        return wrapped.sampled(_call_checked(name, COMBINATORS[name], written | own)), rest
    if name not in METHODS:
        raise UnknownName("method", name, [*METHODS, *COMBINATORS])
    if inner is not None:
        raise InvalidParameter(f"{name} takes no method inside; only {' and '.join(COMBINATORS)} wrap one")
    made_of = METHODS[name].made_of
    if isinstance(made_of, str):
        return _built(_parsed(made_of), written | settings)
    own, rest = _taken(made_of, settings)
    return cast(Method, _call_checked(name, made_of, written | own)), rest


def _place_of(name: str) -> str | None:
    """Where the function is that a name stands for (``_as_python``); None for other names."""
    try:
        told = bytes.fromhex(name.removeprefix("f_")).decode() if name.startswith("f_") else ""
    except ValueError:
        return None
    return told.removeprefix(_IN_FILE) if told.startswith(_IN_FILE) else None


def _call(node: ast.expr, kind: str = "method") -> tuple[str, ast.expr | None, dict[str, Any]]:
    """Name, inner method and keyword settings of one level of the text."""
    if isinstance(node, ast.Name):
        return node.id, None, {}
    if isinstance(node, ast.BinOp):  # a name with a hyphen, such as grad-cam
        text = ast.unparse(node)
        if why := _mistake(text, kind):
            raise InvalidParameter(f"{brief(text)} is no {kind}: {why}")
        known = METRICS if kind == "metric" else [*METHODS, *COMBINATORS]
        raise UnknownName(kind, text.replace(" ", ""), known)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or len(node.args) > 1:
        text = ast.unparse(node)
        if re.fullmatch(r"\w+( - \w+)+", text):  # a name with dashes, which Python takes for a difference
            raise UnknownName(
                kind, text.replace(" ", ""), METRICS if kind == "metric" else [*METHODS, *COMBINATORS]
            )
        raise InvalidParameter(f"{brief(text)} is no {kind}; write name(inner, parameter=value)")
    inner = node.args[0] if node.args else None
    words = [str(word.arg) for word in node.keywords]
    if len(set(words)) < len(words):
        raise InvalidParameter(f"{node.func.id} is given {max(words, key=words.count)} twice; give it once")
    return node.func.id, inner, {str(word.arg): _literal(word.value) for word in node.keywords}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:  # TypeError: a set or keys that cannot be hashed
        raise InvalidParameter(
            f"{brief(ast.unparse(node))} is no plain value (number, 'text', True, None)"
        ) from error


def _taken(taker: Callable[..., Any], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = _names(taker)
    return (
        {key: value for key, value in settings.items() if key in names},
        {key: value for key, value in settings.items() if key not in names},
    )


def _names(taker: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(taker).parameters if name != "samplings"]


def _parameters(node: ast.expr) -> list[str]:
    """All parameters that some level of the text takes."""
    name, inner, _ = _call(node)
    if name in COMBINATORS:
        return _names(COMBINATORS[name]) + (_parameters(inner) if inner is not None else [])
    made_of = METHODS[name].made_of
    return _parameters(_parsed(made_of)) if isinstance(made_of, str) else _names(made_of)


def _unknown_parameter(of: str, name: str, known: Sequence[str]) -> UnknownName:
    """The error that names the parameters there are; where layers are meant, also how these are chosen."""
    beside = "layers are chosen beside the method, by --layers or layers=" if name in ("layer", "layers") else ""
    return UnknownName(f"parameter of {of}", name, known, beside)


def _call_checked(name: str, taker: Callable[..., Any], settings: dict[str, Any]) -> Any:
    for key in settings:
        if key not in _names(taker):
            raise _unknown_parameter(repr(name), key, _names(taker))
    try:
        made = taker(**settings)
    except PellucidError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        require_settings(taker, settings, name)
        raise InvalidParameter(f"{name}: {error}") from error
    require_settings(taker, settings, name)
    return made
