"""README, CONTRIBUTING and .ci/run say the same commands; versions and excused mutations are those that there are."""

import re
import tomllib
from pathlib import Path

from tests import mutations

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_two_commands_with_their_own_set_up():
    job, tests = re.findall(r"^python3\.11 -m venv .*$", README, flags=re.MULTILINE)
    assert job.endswith(".venv/bin/python examples/train_digits.py")
    assert ".venv/bin/pytest" in tests
    for command, extra in ((job, "examples"), (tests, "test")):
        assert re.search(rf'pip install -q (--no-compile )?-e "\.\[{extra}\]"', command)
        assert extra in PROJECT["optional-dependencies"]


def test_contributing_is_what_ci_runs():
    tests = re.findall(r"^python3\.11 -m venv .*pytest.*$", README, flags=re.MULTILINE)[0]
    stages = re.findall(r'^stage "[^"]*" (\.venv/bin/.*)$', CI, flags=re.MULTILINE)
    stages = [stage.split(" -d ")[0] for stage in stages if "$pins" not in stage and "$OLDEST" not in stage]
    assert len(stages) == 6
    oldest = re.findall(r'^OLDEST="(.*)"$', CI, flags=re.MULTILINE)
    for command in (tests, *stages, *oldest):
        assert command in CONTRIBUTING


def test_the_oldest_versions_are_the_lower_bounds():
    pins = [bound.replace(">=", "==") for bound in PROJECT["dependencies"]]
    assert len(pins) == 3
    assert " ".join(pins) in CONTRIBUTING


def test_the_library_itself_needs_little():
    assert {re.split(r"\W", bound)[0] for bound in PROJECT["dependencies"]} == {"jax", "jaxlib", "chex"}
    assert (ROOT / "gradtx" / "py.typed").exists()


def test_every_mutation_that_is_excused_can_be_made():
    """Else its reason is of a line that is gone."""
    made = {file: {m.broken for m in mutations.candidates(ROOT / file, "")} for file, _ in mutations.EQUIVALENT}
    assert not {(file, broken) for file, broken in mutations.EQUIVALENT if broken not in made[file]}
