"""What the decorator asks of authors, and what it gives them."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule, Transform, tree
from gradtx.core.record import Recorded
from tests.core.samples import PARAMS, rebuilt

# Classified by annotation, when decorated -----------------------------------------------------------------------------


def test_hyperparameters_transforms_and_schedules_are_children_everything_else_is_static():
    @gradtx.transform
    def everything(
        rate: gradtx.Positive,
        inner: Transform,
        slow: gradtx.Schedule,
        n: int,
        *,
        maybe: gradtx.Unit | None = None,
        flag: bool = False,
        word: str = "x",
        both: tuple[gradtx.Unit, ...] = (0.9, 0.99),
        named: dict[str, Transform] | None = None,
        count_of: gradtx.PositiveInt = 3,
        function: object = None,
    ) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    tx = everything(
        1, gradtx.scale(2), lambda count: 1.0, 7, named={"x": gradtx.clip(1), "y": gradtx.sgd(1)}, function=len
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tx)]
    assert paths == [
        ".rate",
        ".inner.step_size",
        ".both[0]",
        ".both[1]",
        ".named['x'].max_delta",
        ".named['y'].learning_rate",
        ".named['y'].dampening",
    ]
    assert jax.tree.leaves(tx) == [1.0, 2.0, 0.9, 0.99, 1.0, 1.0, 0.0]
    again = jax.tree.map(lambda leaf: leaf, tx)
    assert again == tx
    assert (again.n, again.word, again.function, again.count_of) == (7, "x", len, 3)
    assert tx.replace(both=[0.5, 0.6]).both == (0.5, 0.6)
    with pytest.raises(ValueError, match=r"gradtx\.everything: both is 1\.5; allowed: .*\[0, 1\)"):
        tx.replace(both=(0.5, 1.5))
    with pytest.raises(TypeError, match=r"gradtx\.everything: both is 0\.5; allowed: a tuple"):
        tx.replace(both=0.5)
    with pytest.raises(ValueError, match=r"gradtx\.everything: count_of is 0; .*\[1"):
        tx.replace(count_of=0)
    with pytest.raises(TypeError, match=r"gradtx\.everything: inner is 3"):
        tx.replace(inner=3)
    with pytest.raises(TypeError, match=r"gradtx\.everything: slow is 3"):
        tx.replace(slow=3)


def test_containers_of_hyperparameters_survive_a_config():
    @gradtx.transform
    def of_containers(betas: tuple[gradtx.Unit, ...], inner: dict[str, Transform]) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    tx = of_containers((0.9, gradtx.linear_schedule(0.9, 0.5, 3)), {"z": gradtx.clip(1), "a": gradtx.sgd(1)})
    assert rebuilt(tx) == tx
    assert eval(repr(tx), vars(gradtx) | {"of_containers": of_containers}) == tx


def test_an_unannotated_parameter_is_refused_when_decorated():
    with pytest.raises(
        TypeError, match=r"with_gap: parameter 'b' has no annotation\. Annotate a hyperparameter with its range"
    ):

        @gradtx.transform
        def with_gap(a: gradtx.Unit, b=0.5) -> Rule: ...


def test_variable_keywords_are_refused_when_decorated():
    with pytest.raises(TypeError, match=r"with_any: \*\*more is not allowed"):

        @gradtx.transform
        def with_any(**more: float) -> Rule: ...


@pytest.mark.parametrize(
    "name", ["init", "update", "expand", "replace", "name", "arguments", "rule", "reads", "to_config"]
)
def test_a_parameter_cannot_take_a_name_of_the_transform_itself(name):
    def body(argument: gradtx.Unit) -> Rule: ...

    body.__annotations__ = {name: gradtx.Unit, "return": Rule}
    body.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gradtx.Unit)]
    )
    with pytest.raises(TypeError, match=rf"body: '{name}' cannot be the name of a parameter"):
        gradtx.transform(body)


@pytest.mark.parametrize("annotation", [None, int, dict, "nothing", Recorded, gradtx.Schedule], ids=str)
def test_the_return_annotation_is_rule_or_transform(annotation):
    def without(rate: gradtx.Unit): ...

    if annotation != "nothing":
        without.__annotations__["return"] = annotation
    with pytest.raises(TypeError, match=r"without: its return annotation is .*; allowed: Rule or Transform"):
        gradtx.transform(without)


def test_a_body_that_returns_something_else_is_refused_at_the_call():
    @gradtx.transform
    def says_rule() -> Rule:
        return gradtx.scale(1.0)

    @gradtx.transform
    def says_transform() -> Transform:
        return Rule(update=lambda updates, state: (updates, state))

    @gradtx.transform
    def says_nothing() -> Transform: ...

    @gradtx.schedule
    def says_number(rate: gradtx.Finite) -> gradtx.Rate:
        return rate

    with pytest.raises(TypeError, match=r"gradtx\.says_rule: its body returned scale\(step_size=1\.0\)"):
        says_rule()
    with pytest.raises(TypeError, match=r"gradtx\.says_transform: its result is "):
        says_transform()
    with pytest.raises(TypeError, match=r"gradtx\.says_nothing: its result is None"):
        says_nothing()
    with pytest.raises(TypeError, match=r"gradtx\.says_number: its body returned .*a function of the count"):
        says_number(1.0)


def test_annotations_as_strings_work():
    def later(rate: "gradtx.Unit" = 0.5) -> "Rule":
        return Rule(update=lambda updates, state: (updates, state))

    assert gradtx.transform(later)(0.25).rate == 0.25


# What an author's update is given -------------------------------------------------------------------------------------


def test_authors_are_given_what_they_name():
    seen = {}

    @gradtx.transform
    def names_all(rate: gradtx.Unit) -> Rule:
        def update(updates, state, params, *, observed, count, value, other=None):
            seen.update(params=params, observed=observed, count=int(count), value=value, other=other, rate=rate)
            return updates, state

        return Rule(update=update)

    tx = names_all(0.5)
    assert tx.extra_args == {"value", "other"}
    assert (gradtx.clip(1.0) >> tx).extra_args == {"value", "other"}
    assert tx.needs_params
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS, value=3.0)
    assert seen["count"] == 1
    assert (seen["value"], seen["other"]) == (3.0, None)
    assert gradtx.tree_equal(seen["observed"], PARAMS)
    assert gradtx.tree_equal(seen["params"], PARAMS)
    assert seen["rate"].dtype == np.float32
    _, state = tx.update(PARAMS, state, PARAMS, value=3.0, other="x")
    assert (seen["count"], seen["other"]) == (2, "x")
    with pytest.raises(
        TypeError, match=r"gradtx\.names_all\.update: the extra argument 'value' is missing; pass value="
    ):
        tx.update(PARAMS, state, PARAMS)


def test_a_name_without_hyperparameter_is_counted_if_it_asks():
    @gradtx.transform
    def counts() -> Rule:
        def update(updates, state, *, count):
            return tree.map(lambda u, k: k * u, updates, k=count.astype(jnp.float32)), state

        return Rule(update=update)

    tx = counts()
    state = tx.init(PARAMS)
    for expected in (1.0, 2.0, 3.0):
        updates, state = tx.update(PARAMS, state)
        assert updates["w"].tolist() == [expected] * 3


def test_an_optional_params_is_none_where_none_are_given():
    seen = []

    @gradtx.transform
    def may_read() -> Rule:
        def update(updates, state, params=None):
            seen.append(params)
            return updates, state

        return Rule(update=update)

    assert not may_read().needs_params
    may_read().update(PARAMS, {})
    assert seen == [None]


def test_errors_in_an_authors_update_say_where():
    @gradtx.transform
    def fails(rate: gradtx.Unit = 0.5) -> Rule:
        def update(updates, state):
            raise RuntimeError("from the update")

        return Rule(update=update)

    @gradtx.transform
    def outer() -> Transform:
        return gradtx.scale(1.0) >> fails()

    with pytest.raises(RuntimeError, match="from the update") as caught:
        outer().update(PARAMS, outer().init(PARAMS))
    assert caught.value.__notes__[:2] == ["in gradtx.fails.update", "in gradtx.outer.update"]


def test_errors_in_an_authors_init_say_where():
    @gradtx.transform
    def fails_at_first(rate: gradtx.Unit = 0.5) -> Rule:
        def init(params):
            raise RuntimeError("from the init")

        return Rule(init, update=lambda updates, state: (updates, state))

    with pytest.raises(RuntimeError) as caught:
        fails_at_first().init(PARAMS)
    assert "in gradtx.fails_at_first.init" in caught.value.__notes__


@pytest.mark.parametrize("fields", [(1, 2), {"count": 3}, jnp.ones(3)], ids=["tuple", "count", "array"])
def test_an_init_that_does_not_return_fields_is_refused(fields):
    @gradtx.transform
    def odd(rate: gradtx.Unit = 0.5) -> Rule:
        return Rule(lambda params: fields, update=lambda updates, state: (updates, state))

    with pytest.raises(
        TypeError, match=r"gradtx\.odd\.init: returned .*allowed: a dict of fields, none called 'count'"
    ):
        odd().init(PARAMS)


BAD_RESULTS = {
    "missing field": lambda updates, state: (updates, {}),
    "another field": lambda updates, state: (updates, state | {"more": jnp.zeros(())}),
    "field of another shape": lambda updates, state: (updates, {"m": {"w": jnp.zeros((1,)), "b": jnp.zeros(())}}),
    "updates of another shape": lambda updates, state: ({"w": jnp.zeros((1,)), "b": updates["b"]}, state),
    "updates of another structure": lambda updates, state: ({"w": updates["w"]}, state),
    "no pair": lambda updates, state: updates["w"],
    "nothing": lambda updates, state: None,
}


@pytest.mark.parametrize("update", BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_an_update_that_breaks_the_invariants_of_its_state_is_refused_by_name(update):
    @gradtx.transform
    def breaks(rate: gradtx.Unit = 0.5) -> Rule:
        return Rule(lambda params: {"m": tree.zeros_like(params)}, update=update)

    tx = breaks()
    state = tx.init(PARAMS)
    with pytest.raises((TypeError, ValueError)) as caught:
        tx.update(PARAMS, state, PARAMS)
    assert "breaks" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize(
    "update",
    [
        functools.partial(lambda updates, state, *, factor: (updates, state), factor=2.0),
        jax.jit(lambda u, s: (u, s)),
        3,
    ],
    ids=["partial", "jitted", "number"],
)
def test_an_update_whose_arguments_cannot_be_read_is_refused_at_the_call(update):
    @gradtx.transform
    def opaque(rate: gradtx.Unit = 0.5) -> Rule:
        return Rule(update=update)

    with pytest.raises(TypeError, match="allowed: a plain function") as caught:
        opaque()
    assert "in gradtx.opaque" in caught.value.__notes__


@pytest.mark.parametrize(
    "update",
    [lambda updates: updates, lambda updates, state, p: (updates, state), lambda updates, state, params, more: 0],
)
def test_an_update_that_names_its_arguments_otherwise_is_refused_at_the_call(update):
    @gradtx.transform
    def misnamed(rate: gradtx.Unit = 0.5) -> Rule:
        return Rule(update=update)

    with pytest.raises(TypeError, match=r"allowed: update\(updates, state\) or update\(updates, state, params\)"):
        misnamed()
