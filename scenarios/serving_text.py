"""Reads the compact forms of serving parts that the command line and scenario files use, like ``mtp:1:0.85``."""

from __future__ import annotations

from .errors import BadInput, RoofplanError
from .serving_parts import METHODS, Autoscale, KvTier, Speculation
from .units import parse_quantity

SPECULATION_FORM = "METHOD:DRAFT_TOKENS:ACCEPTANCE, like mtp:1:0.85, chain:4:0.7:draft=llama3.2-1b or tree:5:0.6:width=4:goodput"
TIER_FORM = "NAME:CAPACITY:RATE, like host:512GB:50GB/s, or remote:10TB:20GB/s:shared"
AUTOSCALE_FORM = "MIN:MAX:REQUESTS, like 1:8:64, or 1:8:64:provision=120s:every=15s:cooldown=300s"


def read_speculation(text: str) -> Speculation:
    """``METHOD:DRAFT_TOKENS:ACCEPTANCE[:option…]``; options: ``width=``, ``spread=``, ``cost=``, ``draft=MODEL``, ``goodput``.

    The acceptance is the user's to give: it depends on the draft, the model and the text. Raises BadInput with the form.
    """
    method, gamma, accept, *rest = _parts(text, "--speculation", 3, SPECULATION_FORM)
    if method not in METHODS:
        raise BadInput(f"--speculation {text[:80]}: {method!r} is not known; legal: {', '.join(METHODS)}")
    options = _options(rest, ("width", "spread", "cost", "draft"), ("goodput",), text, SPECULATION_FORM)
    return Speculation(
        method=method,  # type: ignore[arg-type]
        draft_tokens=_whole(gamma, text, SPECULATION_FORM),
        accept_frac=_number(accept, text, SPECULATION_FORM),
        tree_width=_whole(options.get("width", "1"), text, SPECULATION_FORM),
        accept_spread_frac=_number(options.get("spread", "0"), text, SPECULATION_FORM),
        draft_frac=_number(options.get("cost", "0.05"), text, SPECULATION_FORM),
        draft_model=options.get("draft", ""),
        controller="goodput" if "goodput" in options else "fixed",
    )


def read_kv_tier(text: str) -> KvTier:
    """``NAME:CAPACITY:RATE[:latency=T][:shared]``. Raises BadInput with the form."""
    name, capacity, rate, *rest = _parts(text, "--kv-tier", 3, TIER_FORM)
    options = _options(rest, ("latency",), ("shared",), text, TIER_FORM)
    try:
        return KvTier(
            name=name,
            capacity_bytes=parse_quantity(capacity, "_bytes"),
            bytes_per_s=parse_quantity(rate, "_bytes_per_s"),
            latency_s=parse_quantity(options["latency"], "_s") if "latency" in options else 0.0,
            shared="shared" in options,
        )
    except RoofplanError as error:
        raise BadInput(f"--kv-tier {text[:80]}: {error}") from None


def read_autoscale(text: str) -> Autoscale:
    """``MIN:MAX:REQUESTS[:provision=T][:every=T][:cooldown=T]``. Raises BadInput with the form."""
    low, high, target, *rest = _parts(text, "--autoscale", 3, AUTOSCALE_FORM)
    options = _options(rest, ("provision", "every", "cooldown"), (), text, AUTOSCALE_FORM)
    seconds = {name: parse_quantity(value, "_s") for name, value in options.items()}
    fields = {"provision": "provision_s", "every": "interval_s", "cooldown": "cooldown_s"}
    return Autoscale(
        min_replicas=_whole(low, text, AUTOSCALE_FORM),
        max_replicas=_whole(high, text, AUTOSCALE_FORM),
        target_requests=_whole(target, text, AUTOSCALE_FORM),
        **{fields[name]: value for name, value in seconds.items()},
    )


def _parts(text: str, flag: str, least: int, form: str) -> list[str]:
    parts = text.split(":")
    if len(parts) < least or not all(parts):
        raise BadInput(f"{flag} {text[:80]!r} is not {form}")
    return parts


def _options(parts: list[str], keys: tuple[str, ...], words: tuple[str, ...], text: str, form: str) -> dict[str, str]:
    found = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in (keys if equals else words) or (equals and not value):
            raise BadInput(f"{part[:40]!r} in {text[:80]!r} is not known; the form is {form}")
        found[key] = value
    return found


def _number(value: str, text: str, form: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e9:
        raise BadInput(f"{value[:40]!r} in {text[:80]!r} is not a number; the form is {form}")
    return number


def _whole(value: str, text: str, form: str) -> int:
    number = _number(value, text, form)
    if number != int(number):
        raise BadInput(f"{value[:40]!r} in {text[:80]!r} must be a whole number; the form is {form}")
    return int(number)
