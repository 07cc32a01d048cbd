"""The benchmarks' trees are those of the models they are called after, and `steps` measures what it says it does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.benchmarks import contenders, curvature, pairs, steps, trees

# Parameters (and parameter tensors) of torchvision 0.x's models, of GPT-2's released checkpoint, and by hand.
KNOWN = {
    "mlp": (669_706, 6),
    "resnet50": (25_557_032, 161),
    "efficientnet_b4": (19_341_616, 418),
    "vit_b16": (86_567_656, 152 + 4 * 12),  # torchvision keeps queries, keys and values in one
    "gpt2_small": (124_439_808, 148),
    "gpt2_small_scanned": (124_439_808, 16),
    "lora_7b": (32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008)), 32 * 7 * 2),
    "vgg16": (138_357_544, 32),
    "one_leaf": (32_000_000, 1),
    "billion": (1_000_000_000, 40),
    "1000x1000": (1_000_000, 1000),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_tree_has_the_size_of_its_model(name):
    shapes = trees.tree(name)
    assert (trees.number_of_parameters(shapes), len(jax.tree.leaves(shapes))) == KNOWN[name]


def test_every_tree_is_known():
    assert set(trees.TREES) < set(KNOWN)
    assert trees.number_of_parameters(trees.tree("lora_7b")) == 19_988_480
    with pytest.raises(ValueError, match=r"no tree 'lenet'; there are mlp, .* and 1000x500 for 1000 vectors of 500"):
        trees.tree("lenet")


def test_filled_has_the_shapes_and_no_two_leaves_share_memory():
    shapes = {"kernel": trees.leaf(3, 5), "bias": trees.leaf(5)}
    values = trees.filled(shapes, 1.0, seed=0)
    assert jax.tree.map(lambda one: (one.shape, one.dtype), values) == {
        "kernel": ((3, 5), jnp.float32),
        "bias": ((5,), jnp.float32),
    }
    assert values["kernel"].unsafe_buffer_pointer() != values["bias"].unsafe_buffer_pointer()


@pytest.mark.parametrize("name", contenders.METHODS)
def test_a_method_is_the_same_in_both_libraries(name):
    method = contenders.method(name)
    given = tuple(trees.filled(trees.tree("3x7"), scale, seed) for seed, scale in enumerate((0.02, 1.0)))
    with jax.numpy_dtype_promotion("standard"):
        ours = contenders.of_transform(gradtx.pack(method.gradtx), given)
        theirs = contenders.of_transform(method.optax, given, optax.apply_updates)
        for one in (ours, theirs):
            one.run(3)
    for mine, other in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_bytes_and_kernels_by_hand():
    given = tuple(trees.filled(trees.tree("1x1000"), scale, seed) for seed, scale in enumerate((0.02, 1.0)))
    for name, numbers in {"sgd": 3, "momentum": 5, "adam": 7, "clip_adamw": 8}.items():
        tx = contenders.method(name).gradtx
        counters = 2 * 4 * sum(one.ndim == 0 for one in jax.tree.leaves(tx.init(given[0])))
        assert contenders.moved(tx, tx.init(given[0]), given[0]) == numbers * 4000 + counters
    known = contenders.Contender(lambda _: (), lambda params, state, grads: (params, state), *given)
    known.build()
    assert known.kernels() <= 1  # at most a copy
    assert known.peak() == 2 * 4000
    known.plain_step = lambda params, state, grads: (jax.tree.map(jnp.add, params, grads), state)
    known.build()
    assert known.kernels() == 1


def test_the_quartiles_are_those_of_the_rounds_after_the_warm_ones():
    numbers = iter(range(100))
    found = pairs.interleaved({"one": lambda: float(next(numbers))}, 5, warm=2)
    assert found == {"one": [2, 3, 4, 5, 6]}
    assert pairs.spread(found["one"]) == (2.5, 4, 5.5)
    assert pairs.said(found["one"], 1) == "4.0 (2.5 to 5.5)"
    assert pairs.interleaved({"one": lambda: 1.0}, 5, warm=0, least=2, budget=0.0) == {"one": [1, 1]}


def test_none_comes_last_more_often_than_another():
    came = []
    calls = {name: lambda name=name: came.append(name) or 0.0 for name in "abc"}
    for _ in range(50):
        pairs.interleaved(calls, 2, warm=0)
    rounds = [came[i : i + 3] for i in range(0, len(came), 3)]
    assert all(second == first[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert len({"".join(one) for one in rounds}) == 6


def run(tmp_path, *words):
    saved, drawn = tmp_path / "steps.json", tmp_path / "steps.png"
    rows = steps.main([*words, "--seconds", "0", "--save", str(saved), "--plot", str(drawn)])
    assert drawn.read_bytes().startswith(b"\x89PNG")
    for row, kept in zip(rows, json.loads(saved.read_text())["rows"], strict=True):
        assert steps.Row(**kept).ratios == pytest.approx(row.ratios, rel=1e-3)
    return rows


@pytest.mark.thorough
def test_it_runs_from_end_to_end(tmp_path, capsys):
    rows = run(tmp_path, "--trees", "3x4", "--methods", "rmsprop", "--plain")
    found = {(row.measure, row.one, row.over): row for row in rows}
    for measure in ("trace", "lower", "compile", "build", "step", "eager", "init", "memory", "kernels"):
        assert {(measure, "gradtx", "optax"), (measure, "gradtx", "plain")} <= set(found)
    assert {("step", "gradtx", "floor"), ("step", "optax", "floor")} <= set(found)
    memory = found["memory", "gradtx", "needed"]
    assert memory.ratios == pytest.approx([memory.medians[0] / memory.medians[1]], rel=1e-3)
    assert memory.ratios[0] >= 1
    assert 0 <= memory.medians[1] - 3 * 12 * 4 <= 8  # params, gradients, squares; counters
    printed = capsys.readouterr().out
    assert "3x4, rmsprop: 3 leaves, 12 parameters" in printed
    assert "| 3x4 | rmsprop |" in printed
    again = steps.main(["--load", str(tmp_path / "steps.json")])
    assert [row.column for row in again] == [row.column for row in rows]


@pytest.mark.thorough
def test_trees_that_no_cache_holds_have_their_bytes_for_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "LARGE", 12)
    found = {(row.one, row.over) for row in run(tmp_path, "--trees", "3x4", "--methods", "sgd", "--measures", "step")}
    assert found >= {(one, limit) for one in ("gradtx", "optax") for limit in ("floor", "bytes", "copy")}


def test_what_counts_as_solved_and_its_table():
    assert [curvature.is_solved(value, (0.0, 5.0)) for value in (9e-7, -9e-7, 5.0004, np.nan)] == [True] * 3 + [False]
    assert not any(curvature.is_solved(value, (1e-9, 5.0)) for value in (2e-6, 5.0006))
    tries = {
        "one": {"a": curvature.Try(0.0, 10, 1.0, 0.1), "b": curvature.Try(5.0, 30, 3.0, 0.3)},
        "other": {"a": curvature.Try(1.0, 99, 1.0, 0.2), "b": curvature.Try(5.0, 7, 3.0, 0.4)},
    }
    assert curvature.lowest(tries) == {"a": (0.0,), "b": (5.0,)}
    lines = curvature.table(tries, curvature.lowest(tries)).splitlines()
    assert lines[2:] == [
        "| one | 2 of 2 | 20 | 2.00 | 0.2 |",
        "| other | 1 of 2 | 7 | 2.00 | 0.3 |",
        "",
        "other: not a",
    ]


@pytest.mark.thorough
def test_minimizers_of_scipy_and_optax_on_two_problems():
    chosen = ["SciPy BFGS", "trust-exact", "least_squares", "optax L-BFGS"]
    printed = curvature.main(["mgh", "--repeat", "1", "--problems", "wood", "beale", "--solvers", *chosen])
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines()[2:7]]
    assert {name: solved for name, solved, *_ in rows} == {
        "SciPy BFGS": "2 of 2",
        "optax L-BFGS": "2 of 2",
        "optax L-BFGS, backtracking": "1 of 2",
        "SciPy trust-exact": "2 of 2",
        "SciPy least_squares, lm": "2 of 2",
    }
    assert all(2 < float(row[2]) < 200 and float(row[4]) < float(row[3]) for row in rows)
    assert not jax.config.jax_enable_x64


def test_a_function_of_numpy_has_two_derivatives_and_one_call_for_value_and_gradient():
    calls = []

    def both(x):
        calls.append(1)
        return np.sum(x**4), 4 * x**3

    loss = curvature.called(lambda x: both(x)[0], both, lambda x, v: 12 * x**2 * v)
    with jax.enable_x64(True):
        x = jnp.array([1.0, -2.0])
        value, slope = jax.jit(jax.value_and_grad(loss))(x)
        assert (float(value), slope.tolist(), len(calls)) == (17.0, [4.0, -32.0], 1)
        product = jax.jit(lambda v: jax.jvp(jax.grad(loss), (x,), (v,))[1])(jnp.array([1.0, 0.5]))
        assert product.tolist() == [12.0, 24.0]
        assert float(loss(x)) == 17.0


@pytest.mark.bench
def test_it_runs_beside_pytorch_and_keras(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    rows = run(
        tmp_path, "--trees", "3x4", "--methods", "clip_adamw", "--torch", "--keras", "--measures", "step", "init"
    )
    found = {(row.measure, row.one) for row in rows if row.over == "gradtx"}
    assert found == {("step", f"torch {how}") for how in ("for-loop", "foreach", "fused")} | {
        ("step", "keras"),
        ("init", "keras"),
    }
