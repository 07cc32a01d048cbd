"""CAME, GaLore and APOLLO: the authors' paths, what does not depend on the signs of singular vectors, and the edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from tests import matrix_paths
from tests.records import matrix_problem as problem
from tests.wrappers.runs import assert_close

LARGE = 10_000
LIMIT = gradtx.clip_by_norm_growth(1.01)


def cases(method):
    return [name for name in matrix_paths.golden()["paths"] if name.startswith(f"{method}: author")]


def numbers(said, eps):
    b1, b2 = said.get("betas", (0.9, 0.999))
    return {"b1": b1, "b2": b2, "eps": said.get("eps", eps)}


def decayed_after(tx, said):
    """The decay of the authors, of the params after the step."""
    fraction = said["lr"] * said.get("weight_decay", 0.0)
    return tx >> gradtx.scale(1 - fraction) >> gradtx.add_decayed_weights(fraction, flip_sign=True)


def galore_of(said, gap):
    if said.get("correct_bias", True):
        base = gradtx.scale_by_adam(**numbers(said, 1e-6), eps_hat=True)
    else:
        base = gradtx.scale_by_momentum(form="average") + gradtx.scale_by_rms(eps=1e-6, debias=False)
    rest = {"scale": said["scale"], "base_optimizer": base, "proj_type": said["proj_type"]}
    return decayed_after(gradtx.galore(said["lr"], said["rank"], gap, **rest), said)


def apollo_of(said, gap):
    front = said.get("scale_front", False)  # else the root is a part of the rate
    rest = {"scale_type": said["scale_type"], "proj_type": said["proj_type"], "proj": said["proj"]}
    rest |= {"max_growth": None} if said.get("disable_nl") else {}
    rate, scale = (said["lr"], said["scale"]) if front else (said["lr"] * math.sqrt(said["scale"]), 1.0)
    return decayed_after(gradtx.apollo(rate, said["rank"], gap, scale, **numbers(said, 1e-6), **rest), said)


def path_with(tx, case):
    """Ours with the authors' projectors, each from its step on; our own are never found."""
    x, given, rows = problem.params(*case["leaves"]), case["given"]["projections"], []
    state, update = tx.init(jax.tree.map(jnp.asarray, x)), jax.jit(tx.update)
    groups = state["by_shape"]["groups"]["matrix"]
    view = next(own for name, own in groups.items() if name.endswith("low_rank"))
    view["count"] = jnp.int32(1)
    for step in range(1, problem.STEPS + 1):
        view = next(own for name, own in state["by_shape"]["groups"]["matrix"].items() if name.endswith("low_rank"))
        for name, projections in given.items():
            for one in projections:
                if one["step"] == step:
                    view["projector"][name] = jnp.asarray(one["projection"])
        updates, state = update(problem.gradient(x), state, x)
        x = {name: leaf + np.asarray(updates[name]) for name, leaf in x.items()}
        rows.append(x)
    return {name: np.array([rows[step - 1][name].ravel() for step in problem.SHOWN]) for name in x}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*cases("galore"), *cases("apollo")])
def test_with_the_same_projectors_the_path_is_the_authors(name):
    case = matrix_paths.read(name)
    make = galore_of if name.startswith("galore") else apollo_of
    ours = path_with(make(case["arguments"], LARGE), case)
    assert matrix_paths.difference(ours, case) < matrix_paths.allowed(case)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [name for name in (*cases("galore"), "apollo: author, svd") if "refreshed" not in name]
)
def test_until_the_first_refresh_our_own_projectors_do_too(name):
    case = matrix_paths.read(name)
    make = galore_of if name.startswith("galore") else apollo_of
    ours = matrix_paths.path(make(case["arguments"], case["arguments"]["update_proj_gap"]), case)
    assert matrix_paths.difference(ours, case) < matrix_paths.allowed(case)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", cases("came"))
def test_came_is_the_authors(name):
    case = matrix_paths.read(name)
    said = case["arguments"]
    b1, b2, b3 = said.get("betas", (0.9, 0.999, 0.9999))
    eps = dict(zip(("eps", "eps_confidence"), said.get("eps", ()), strict=False))
    clip, decay = said.get("clip_threshold", 1.0), said.get("weight_decay", 0.0)
    tx = gradtx.came(said["lr"], b1, b2, b3, clipping_threshold=clip, weight_decay=decay, **eps)
    assert matrix_paths.difference(matrix_paths.path(tx, case), case) < matrix_paths.allowed(case)


# Invariants -----------------------------------------------------------------------------------------------------------

SIDES = ("std", "reverse_std", "left", "right")
SHAPES = {"long": (6, 4), "wide": (3, 5), "square": (4, 4)}


def steps_of(tx, gradients):
    state, found = tx.init(gradients[0]), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, gradients[0])
        found.append(updates)
    return found, state


def some(count, shape=(6, 4)):
    return testing.gradients({"w": jnp.zeros(shape, jnp.float64)}, count)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_projection_is_the_nearest_matrix_of_that_rank(side, shape):
    """Eckart and Young: whichever axis is projected, the best approximation is the same; and of full rank, all."""
    gradients = some(3, shape)
    for rank in (2, 99):
        found, state = steps_of(gradtx.low_rank(gradtx.identity(), rank, 1, proj_type=side), gradients)
        (p,) = jax.tree.leaves(gradtx.find(state, "projector"))
        axis = {"left": 0, "right": 1}.get(side, shape.index((min if side == "std" else max)(shape)))
        assert p.shape == (shape[axis], min(rank, *shape))
        np.testing.assert_allclose(p.T @ p, np.eye(p.shape[1]), atol=1e-14)
        for update, gradient in zip(found, gradients, strict=True):
            u, s, vt = np.linalg.svd(gradient["w"], full_matrices=False)
            np.testing.assert_allclose(update["w"], (u * s)[:, :rank] @ vt[:rank], atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_with_full_rank_it_is_adam_in_the_rotated_space():
    gradients = some(5)
    found, state = steps_of(gradtx.low_rank(gradtx.scale_by_adam(), 4, LARGE, proj_type="std"), gradients)
    (p,) = jax.tree.leaves(gradtx.find(state, "projector"))
    rotated, _ = steps_of(gradtx.scale_by_adam(), [{"w": g["w"] @ p} for g in gradients])
    for update, turned in zip(found, rotated, strict=True):
        np.testing.assert_allclose(update["w"], turned["w"] @ p.T, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_signs_of_the_projector_do_not_matter_until_it_changes():
    for make in (gradtx.low_rank, gradtx.scale_by_low_rank):
        tx = make(gradtx.scale_by_adam(), 2, LARGE)
        paths = []
        for signs in ([1, 1], [-1, 1]):
            state = tx.init({"w": jnp.zeros((6, 4), jnp.float64)})
            own = state[tx.name]
            length = own["projector"]["w"].shape[0]
            q = np.linalg.qr(problem.scattered((length, 2), 3))[0]
            own["projector"]["w"], own["count"] = jnp.asarray(q * signs), jnp.int32(1)
            rows, update = [], jax.jit(tx.update)
            for gradient in some(5):
                updates, state = update(gradient, state)
                rows.append(updates["w"])
            paths.append(rows)
        np.testing.assert_allclose(paths[0], paths[1], atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_what_the_inner_transform_remembers_stays_at_a_refresh():
    """The authors' way: the averages of the old space go on in the new one."""
    gradients = some(4)
    found, state = steps_of(gradtx.low_rank(gradtx.scale_by_rms(0.9, 0.0, debias=False), 2, 2), gradients)
    nu = 0
    for step, gradient in enumerate(gradients):
        if step % 2 == 0:
            p = np.linalg.svd(gradient["w"], full_matrices=False)[0][:, :2]
        r = p.T @ gradient["w"]
        nu = 0.9 * nu + 0.1 * r**2
        np.testing.assert_allclose(found[step]["w"], p @ (r / np.sqrt(nu)), atol=1e-12)
    np.testing.assert_allclose(gradtx.find(state, "nu")["w"], nu, rtol=1e-12)


def test_a_random_projector_is_drawn_again_and_has_the_norm_of_the_gradient_in_the_mean():
    tx = gradtx.scale_by_low_rank(gradtx.identity(), 100, 2)
    g = {"w": jnp.zeros((200, 300)), "v": jnp.zeros((200, 300))}
    state, seen = tx.init(g), []
    for _ in range(4):
        _, state = tx.update(g, state)
        seen.append(gradtx.find(state, "projector"))
    assert [bool((one["w"] == seen[0]["w"]).all()) for one in seen] == [True, True, False, False]
    assert not (seen[0]["w"] == seen[0]["v"]).any()
    assert seen[0]["w"].shape == (200, 100)
    np.testing.assert_allclose(jnp.mean(seen[0]["w"] ** 2), 1 / 100, rtol=0.05)
    other = gradtx.scale_by_low_rank(gradtx.identity(), 100, 2, key=1)
    assert not (gradtx.find(other.update(g, other.init(g))[1], "projector")["w"] == seen[0]["w"]).any()


def test_apollo_mini_is_apollo_of_rank_1():
    gradients = [{"w": jnp.cos(jnp.arange(12.0).reshape(3, 4) * (step + 1)), "b": jnp.ones(3)} for step in range(4)]
    numbers = {"b1": 0.8, "b2": 0.9, "eps": 1e-4, "weight_decay": 0.1, "max_growth": 1.1, "key": 3}
    mini, _ = steps_of(gradtx.apollo_mini(0.1, 2, **numbers), gradients)
    same, _ = steps_of(gradtx.apollo(0.1, 1, 2, 128.0, scale_type="tensor", **numbers), gradients)
    assert_close(mini, same)


def test_the_corrections_as_a_factor_make_adam():
    inner = gradtx.scale_by_momentum(0.8, form="average") + gradtx.scale_by_rms(0.9, 1e-3, debias=False)
    gradients = [{"w": jnp.float32([step + 1.0, -0.5])} for step in range(5)]
    parts, _ = steps_of(inner >> gradtx.scale_by_bias_correction(0.8, 0.9), gradients)
    adam, _ = steps_of(gradtx.scale_by_adam(0.8, 0.9, 1e-3, eps_hat=True), gradients)
    np.testing.assert_allclose([u["w"] for u in parts], [u["w"] for u in adam], rtol=1e-6)


def test_growth_after_an_update_of_zero_is_free():
    state, seen = LIMIT.init(jnp.zeros(2)), []
    for size in (0.0, 3.0, 6.0, 1.0):
        u, state = LIMIT.update(jnp.float32([0.6, 0.8]) * size, state)
        seen.append(float(jnp.linalg.norm(u)))
    np.testing.assert_allclose(seen, [0, 3, 3.03, 1], rtol=1e-6)


# Edges ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_projectors_do_not_depend_on_the_size_of_the_gradient(size):
    g = {"w": jnp.float32(size) * jnp.cos(jnp.arange(20.0).reshape(5, 4))}
    tx = gradtx.low_rank(gradtx.identity(), 2)
    updates, _ = tx.update(g, tx.init(g))
    u, s, vt = np.linalg.svd(np.float64(g["w"]), full_matrices=False)
    np.testing.assert_allclose(updates["w"], (u * s)[:, :2] @ vt[:2], atol=1e-5 * size)


def test_a_projector_that_is_not_finite_keeps_the_one_before():
    good, tx = {"w": jnp.cos(jnp.arange(20.0).reshape(5, 4))}, gradtx.low_rank(gradtx.scale_by_rms(), 2, 1)
    _, state = tx.update(good, tx.init(good))
    before = gradtx.find(state, "projector")
    _, state = tx.update({"w": good["w"].at[0, 0].set(jnp.nan)}, state)
    assert gradtx.tree_equal(gradtx.find(state, "projector"), before)
    _, state = tx.update({"w": good["w"].at[0, 0].set(jnp.nan)}, tx.init(good))
    assert gradtx.tree_equal(gradtx.find(state, "projector"), {"w": jnp.eye(5, 2)})


def test_names_for_up_are_not_for_others():
    same = lambda x: x  # noqa: E731
    with pytest.raises(ValueError, match="a field is called 'shown', but that name is reserved"):
        gradtx.View(same, same, shown=gradtx.fields.scalar())

    @gradtx.transform
    def hearing_too_early(inner: gradtx.Transform) -> gradtx.Rule:
        return gradtx.through(gradtx.View(lambda x, *, shown: x + shown, same), inner)

    with pytest.raises(TypeError, match="names 'shown', which is neither a field nor provided"):
        hearing_too_early(gradtx.identity()).init(jnp.ones(2))
