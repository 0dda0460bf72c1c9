"""The documentation is held against the code: links lead somewhere, commands exist, the map is whole."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from affiant.cli import build_parser
from lab.support_matrix.names import names_of_today
from lab.support_matrix.page import stale as stale_names
from lab.tamper.page import stale as stale_techniques
from lab.tamper.table import TECHNIQUES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "lab").rglob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _fences(page: Path, language: str) -> list[str]:
    return [body for name, body in _FENCE.findall(page.read_text()) if name == language]


def _commands(page: Path) -> list[str]:
    """Return every `$ affiant ...` line of the console blocks, continuation lines joined."""
    lines = "\n".join(_fences(page, "console")).replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ affiant ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    targets = [link for link in _LINK.findall(text) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, command) for page in PAGES for command in _commands(page)],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_commands_exist(page: Path, command: str) -> None:
    """Every command shown is accepted by the real command line (it is parsed, not run)."""
    for placeholder in ("NONCE", "DIGEST"):
        command = command.replace(placeholder, "00" * 32)
    words = shlex.split(command, comments=True)[1:]
    for stop in ("|", ">", "&&", ";", "&"):
        words = words[: words.index(stop)] if stop in words else words
    try:
        build_parser().parse_args(words)
    except SystemExit as leaving:
        assert leaving.code == 0, f"{page.name} shows a command that does not exist: {command}"


def test_the_map_shows_every_layer() -> None:
    """ARCHITECTURE.md draws the same layers that the import contract holds."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = contracts[0]["layers"]
    assert "\n".join(layers) in (ROOT / "ARCHITECTURE.md").read_text()


def test_the_map_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = [path.parent.name for path in (ROOT / "src/affiant").glob("*/__init__.py")]
    assert packages
    assert not [name for name in packages if f"\n  {name}/" not in text]


def test_the_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def test_the_support_matrix_names_every_kernel_rule_fact_and_class_of_today() -> None:
    """`make support-matrix` writes it anew."""
    assert stale_names((ROOT / "docs/support-matrix.md").read_text(), names_of_today()) == ()


def test_the_tamper_report_is_of_today_s_techniques() -> None:
    """`make tamper-report` writes it anew."""
    assert stale_techniques((ROOT / "docs/tamper-report.md").read_text(), TECHNIQUES) == ()


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    """The library example is run against a truthful machine."""
    from tests.simulator import AUDIENCE, NONCE, make_world, root_pem

    world = make_world(tmp_path)
    names = {
        "passport": world.machine().attest().passport(),
        "root_pem": root_pem(world.service),
        "nonce": NONCE,
        "now": world.service.now,
        "audience": AUDIENCE,
    }
    (example,) = _fences(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), names)
    assert names["decision"].accepted
