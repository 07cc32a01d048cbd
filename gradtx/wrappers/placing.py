"""Orders of wrappers that make no sense, refused by name."""

from gradtx.core.transform import Transform


def refuse_final(who: str, inner: Transform, *, also_final: bool = False) -> None:
    """For a wrapper that changes what the inner transform returns."""
    if "last" in inner.facts:
        remedy = "Keep one of the two." if also_final else f"Put {who} inside it."
        raise TypeError(
            f"gradtx.{who}: the updates of {inner!r} decide the bits of the params and are to be applied as they are. "
            f"{remedy}"
        )


def refuse_first(who: str, inner: Transform, *, also_first: bool = False) -> None:
    """For a wrapper that looks at the gradients or changes them."""
    if "first" in inner.facts:
        remedy = "Keep one of the two." if also_first else f"Put {who} inside it."
        raise TypeError(
            f"gradtx.{who}: {inner!r} must be given the gradients as they come, since it scales them back. {remedy}"
        )


def refuse_waiting(who: str, inner: Transform) -> None:
    """For a wrapper that counts steps."""
    if inner.facts.sometimes:
        raise TypeError(
            f"gradtx.{who}: {inner!r} makes its steps at some updates only, and {who} would count the others too. Put "
            f"{who} inside it."
        )
