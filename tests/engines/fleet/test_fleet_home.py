"""A coordinator's folder: who may use it, where devices find it, which run lies in it."""

import json
from pathlib import Path

import pytest

from edgewise.engines.fleet.home import CONTACT, RUN_ID, Contact, Home, run_id
from edgewise.engines.fleet.journal import Journal
from edgewise.errors import EdgewiseError


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.ca.mkdir(parents=True)
    return found


def test_a_folder_that_is_no_coordinators(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with (
            pytest.raises(
                EdgewiseError, match="not a coordinator's folder; edgewise coordinator init makes one"
            ),
            Home(folder).alone(),
        ):
            pass


def test_one_at_a_time(home: Home) -> None:
    with home.alone() as journal:
        assert isinstance(journal, Journal)
        journal.event("kind", "words").result(60)
        with pytest.raises(EdgewiseError, match="another coordinator runs"), Home(home.folder).alone():
            pass
    with home.alone():
        pass


def test_it_is_free_again_after_an_error(home: Home) -> None:
    with pytest.raises(ZeroDivisionError), home.alone():
        raise ZeroDivisionError
    home.journal_file.write_text("this is no journal" * 100)
    for _ in range(2):
        with pytest.raises(EdgewiseError, match="not a usable journal"), home.alone():
            pass


# ---- the run ----


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    found = run_id(tmp_path)
    assert run_id(tmp_path) == found and len(found) == 32 and int(found, 16) >= 0
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != found


@pytest.mark.parametrize("text", ["", "a" * 31, "a" * 33, "../" + "a" * 29, "a" * 16 + "/" + "a" * 15])
def test_an_id_that_is_none_names_no_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_ID).write_text(text)
    with pytest.raises(EdgewiseError, match="not a run's id"):
        run_id(tmp_path)


# ---- the contact ----


@pytest.mark.parametrize("hosts", [("fleet.example.org",), ("192.168.1.4", "fleet"), ("[::1]", "10.0.0.1")])
def test_a_contact_is_the_same_from_the_disk(tmp_path: Path, hosts: tuple[str, ...]) -> None:
    contact = Contact(hosts, 7443)
    contact.save(tmp_path)
    assert Contact.load(tmp_path) == contact
    assert contact.fleet == tuple(f"{host}:7443" for host in hosts) and contact.join == f"{hosts[0]}:7444"


@pytest.mark.parametrize(
    "content",
    [
        *(None, "", "[]", "{}", "7", "{broken"),
        *({"hosts": ["fleet"]}, {"port": 7443}, {"hosts": "fleet", "port": 7443}),
        *({"hosts": [], "port": 7443}, {"hosts": [7], "port": 7443}, {"hosts": None, "port": 7443}),
        *({"hosts": ["fleet"], "port": port} for port in (0, -1, 65535, 1 << 70, "none", None)),
    ],
)
def test_a_contact_that_is_none_is_one_line(tmp_path: Path, content: object) -> None:
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / CONTACT).write_text(text)
    with pytest.raises(EdgewiseError, match=r"contact\.json: not readable .* coordinator init makes it$"):
        Contact.load(tmp_path)
