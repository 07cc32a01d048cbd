"""Errors for wrappers in an order that makes no sense."""

from gradtx.core.transform import Transform


def refuse_final(who: str, inner: Transform, *, also_final: bool = False) -> None:
    """For a wrapper that changes the updates of the inner transform."""
    if "last" in inner.facts:
        remedy = "Keep one of the two." if also_final else f"Put {who} inside it."
        raise TypeError(
            f"gradtx.{who}: inner is {inner!r}, whose updates decide the bits of the params; they must be applied "
            f"unchanged. {remedy}"
        )


def refuse_first(who: str, inner: Transform, *, also_first: bool = False) -> None:
    """For a wrapper that reads the gradients or changes them."""
    if "first" in inner.facts:
        remedy = "Keep one of the two." if also_first else f"Put {who} inside it."
        raise TypeError(
            f"gradtx.{who}: inner is {inner!r}, which scales the gradients back; it must get them unchanged. {remedy}"
        )


def refuse_waiting(who: str, inner: Transform) -> None:
    """For a wrapper that counts steps."""
    if inner.facts.sometimes:
        raise TypeError(
            f"gradtx.{who}: inner is {inner!r}, which makes its steps at some updates only; {who} would count the "
            f"others too. Put {who} inside it."
        )
