"""What the library costs its authors and its users: lines, calls, times. A table beside an older checkout.

    python -m tests.benchmarks.measures [FOLDER]        # FOLDER: another checkout, measured by the same script

Lines are those with code: tokens, without docstrings and comments. Times are the least of several; the two checkouts
alternate.
"""

import argparse
import ast
import inspect
import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("averages.py", "momentum.py", "adaptive.py", "effects", "optimizers")
NEW = ("relatives_family.py", "factored_family.py")

IN_A_PROCESS = """
import cProfile, json, pstats, sys, timeit, jax, jax.numpy as jnp
sys.path.insert(0, sys.argv[1])
import gradtx
assert gradtx.__file__.startswith(sys.argv[1])
def best(call, number):
    call(); call()
    return min(timeit.repeat(call, number=number, repeat=7)) / number
layers = {"one": {"w": jnp.ones((784, 128)), "b": jnp.zeros(128)}}
layers["two"] = {"w": jnp.ones((128, 10)), "b": jnp.zeros(10)}
adam = gradtx.adam(1e-3)
state = adam.init(layers)
found = {"build adam, ms": 1e3 * best(lambda: gradtx.adam(1e-3), 200)}
found["eager step of adam, ms"] = 1e3 * best(lambda: jax.block_until_ready(adam.update(layers, state, layers)), 20)
params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
def traced():
    tx = gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(1e-3)
    state = tx.init(params)
    profile, depth = cProfile.Profile(), [0, 0]
    profile.enable()
    jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p))(params, state, params)
    profile.disable()
    ours = {key: value for key, value in pstats.Stats(profile).stats.items() if "/gradtx/" in key[0]}
    return sum(value[1] for value in ours.values()), len({key[0] for key in ours})
traced()
found["calls to trace clip >> adamw"], found["files"] = traced()
def depth():
    tx = gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(1e-3)
    state, deepest = tx.init(params), [0]
    def count(frame, event, argument):
        if event == "call" and "/gradtx/" in frame.f_code.co_filename:
            level, above = 0, frame
            while above is not None:
                level += "/gradtx/" in above.f_code.co_filename
                above = above.f_back
            deepest[0] = max(deepest[0], level)
    sys.setprofile(count)
    jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p))(params, state, params)
    sys.setprofile(None)
    return deepest[0]
found["depth"] = depth()
for name, tx in {
    "sgd, momentum": gradtx.sgd(0.1, 0.9),
    "adam": adam,
    "clip >> adamw": gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(1e-3),
    "accumulate": gradtx.accumulate(adam, 2),
    "exponential_averaging": gradtx.exponential_averaging(adam),
    "skip_nonfinite": gradtx.skip_nonfinite(adam, 3),
}.items():
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return gradtx.apply_updates(params, updates), state
    compiled = jax.jit(step).lower(layers, tx.init(layers), layers).compile()
    found[f"kernels of {name}"] = compiled.as_text().count(" fusion(")
    found[f"bytes of {name}, MB"] = compiled.cost_analysis()["bytes accessed"] / 1e6
print(json.dumps(found))
"""


def lines_of_code(path: Path) -> int:
    """Lines with a token that is no comment, docstring or line end."""
    text, docs = path.read_text(), set()
    for node in ast.walk(ast.parse(text)):
        inside = getattr(node, "body", None)
        if isinstance(inside, list) and inside and isinstance(inside[0], ast.Expr):
            value = inside[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs |= set(range(value.lineno, value.end_lineno + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docs)


def lines(root: Path) -> dict[str, float]:
    """Lines of code of the library, without landscape and plot, and of the methods of the lecture."""
    files = [p for p in (root / "gradtx").rglob("*.py") if not {"landscape", "plot"} & set(p.parts)]
    methods = [p for p in files if p.relative_to(root / "gradtx").parts[0] in METHODS and p.name not in NEW]
    return {
        "lines of code": sum(map(lines_of_code, files)),
        "of averages, momentum, adaptive, effects, optimizers": sum(map(lines_of_code, methods)),
    }


def measured(root: Path) -> dict[str, float]:
    """What a process of its own measures."""
    run = subprocess.run([sys.executable, "-c", IN_A_PROCESS, str(root)], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or ""))
    parser.add_argument("other", nargs="?", type=Path, help="another checkout")
    roots = [root.resolve() for root in (parser.parse_args().other, ROOT) if root is not None]
    rows: dict[str, list[float]] = {}
    for root in roots:
        for name, value in lines(root).items():
            rows.setdefault(name, []).append(value)
    rounds = [[measured(root) for root in roots] for _ in range(3)]
    for name in rounds[0][0]:
        rows[name] = [min(each[index][name] for each in rounds) for index in range(len(roots))]
    for name, values in rows.items():
        print(f"{name:<56}" + "".join(f"{value:>12.3f}" if value % 1 else f"{value:>12.0f}" for value in values))


if __name__ == "__main__":
    main()
