"""The source of a user's classes: found without importing them, all of it, as it is now."""

import sys
import textwrap
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from kvx import __version__
from kvx.identity import reload, user_code
from kvx.identity.user_code import identity_of, press_code, source_of, sources_of, targets


class Home:
    """A folder on `sys.path` with modules of a user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(reload, "_seen", {})
    for name in [n for n in sys.modules if n.startswith("my_")]:
        monkeypatch.delitem(sys.modules, name)
    return Home(tmp_path)


def test_installed_classes_are_known_by_a_version() -> None:
    import importlib.metadata

    version = importlib.metadata.version("kvpress")
    assert source_of("kvpress.SnapKVPress") == f"kvpress {version}"
    assert source_of("kvx.data.sources.recall.RecallSource") == f"kvx {__version__}"
    assert (source_of("hydra.utils.get_class") or "").startswith("hydra-core 1.")
    assert source_of("collections.OrderedDict") == f"python 3.{sys.version_info.minor}"
    assert source_of("there_is_no.Such") is None


def test_versions_that_all_points_had_change_no_id() -> None:
    assert identity_of({"kvpress.SnapKVPress": "kvpress 0.5.5", "kvx.A": "kvx 9"}) == {}
    new = {"kvpress.SnapKVPress": "kvpress 0.5.6"}
    assert identity_of(new) == new


def test_all_that_a_users_class_imports_of_the_users_counts(home: Home) -> None:
    """Nothing of it is run: that would import torch, or do whatever a module does."""
    boom = "raise SystemExit('was imported')\n"
    files = [
        home.write("my_pkg/__init__.py", boom),
        home.write("my_pkg/press.py", boom + textwrap.dedent("""
            import json, torch
            import numpy as np
            from kvpress import ScorerPress
            from . import near
            from .deep.er import helper
            import my_plain.inner
            class Press(ScorerPress):
                def score(self):
                    from my_late import late
                    import importlib
                    return importlib.import_module("my_named")
        """)),
        home.write("my_pkg/near.py", boom),
        home.write("my_pkg/deep/er.py", boom + "from ..near import x\nfrom ... import y\n"),
        home.write("my_plain/inner.py", boom),
        home.write("my_late.py", boom + "import my_pkg.press\n"),
        home.write("my_named.py", boom),
    ]  # fmt: skip
    home.write("my_other.py", boom)
    seen = [source_of("my_pkg.press.Press")]
    for file in files:
        file.write_text(file.read_text() + "\n# edited\n")
        seen.append(source_of("my_pkg.press.Press"))
    assert None not in seen
    assert len(set(seen)) == len(files) + 1
    (home.path / "my_other.py").write_text("x = 1")
    assert source_of("my_pkg.press.Press") == seen[-1]
    assert not {n for n in sys.modules if n.startswith("my_")}


def test_a_class_that_a_package_passes_on_is_found(home: Home) -> None:
    home.write("my_api/__init__.py", "from .impl import Press\n")
    file = home.write("my_api/impl.py", "class Press: pass\n")
    before = source_of("my_api.Press")
    file.write_text("class Press: x = 1\n")
    assert before is not None
    assert source_of("my_api.Press") != before


def test_wrappers_and_what_they_wrap_are_named() -> None:
    node = {"_target_": "a.W", "press": {"_target_": "b.P"}, "more": [{"_target_": "c.Q"}],
            "cls": {"_target_": "hydra.utils.get_class", "path": "d.R"},
            "path": "no.thing"}  # fmt: skip
    assert sorted(targets(node)) == ["a.W", "b.P", "c.Q", "d.R"]


def test_code_in_an_archive_and_compiled_code_count(home: Home) -> None:
    archive = home.path / "lib.zip"
    hashes = []
    for text in ("x = 1", "x = 2"):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("my_zipped.py", text)
        sys.path.insert(0, str(archive))
        sys.path_importer_cache.pop(str(archive), None)
        hashes.append(source_of("my_zipped.Press"))
        sys.path.remove(str(archive))
    assert None not in hashes
    assert len(set(hashes)) == 2
    import importlib.machinery

    name = f"my_built{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    for content in (b"one", b"two"):
        (home.path / name).write_bytes(content)
        hashes.append(source_of("my_built.Press"))
    assert None not in hashes
    assert len(set(hashes)) == 4


def test_an_editable_install_is_the_users_code(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finder maps a name to a folder that is on no path."""
    import importlib.util
    from importlib.machinery import ModuleSpec

    place = home.write("elsewhere/src/my_edited/__init__.py", "x = 1\n")

    class Finder:
        @classmethod
        def find_spec(
            cls, name: str, path: object = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            if name != "my_edited":
                return None
            return importlib.util.spec_from_file_location(
                name, place, submodule_search_locations=[str(place.parent)]
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    before = source_of("my_edited.Press")
    place.write_text("x = 2\n")
    assert before is not None
    assert user_code.is_users(before)
    assert source_of("my_edited.Press") != before


def test_an_installed_package_of_the_users_is_known_by_what_was_installed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = home.path / "site-packages"
    monkeypatch.syspath_prepend(str(site))
    (site / "my_dist").mkdir(parents=True)
    (site / "my_dist" / "__init__.py").write_text("x = 1\n")
    info = site / "my_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-dist\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("my_dist\n")
    found = []
    for sha in ("one", "two"):
        (info / "RECORD").write_text(f"my_dist/__init__.py,sha256={sha},6\n")
        user_code._version.cache_clear()
        found.append(source_of("my_dist.Press"))
    assert all(one is not None and one.startswith("my-dist 1.0 ") for one in found)
    assert len(set(found)) == 2
    user_code._version.cache_clear()


def test_what_this_process_imported_is_imported_again_when_it_changed(home: Home) -> None:
    """Two edits within a second, of the same length: Python's own cache cannot tell them apart."""
    import importlib

    home.write("my_helper.py", "VALUE = 1\n")
    home.write("my_press.py", "import my_helper\nclass Press: value = my_helper.VALUE\n")
    seen = []
    for value in (1, 2, 3):
        home.write("my_helper.py", f"VALUE = {value}\n")
        seen.append(source_of("my_press.Press"))
        importlib.invalidate_caches()
        assert importlib.import_module("my_press").Press.value == value
    assert len(set(seen)) == 3
    same = sys.modules["my_press"]
    assert source_of("my_press.Press") == seen[-1]
    assert sys.modules["my_press"] is same


def test_a_module_that_is_deleted_is_not_what_this_process_remembers(home: Home) -> None:
    import importlib

    helper = home.write("my_gone/helper.py", "VALUE = 1\n")
    home.write("my_user.py", "from my_gone.helper import VALUE\nclass Press: value = VALUE\n")
    before = source_of("my_user.Press")
    assert importlib.import_module("my_user").Press.value == 1
    helper.unlink()
    assert source_of("my_user.Press") not in (before, None)
    with pytest.raises(ModuleNotFoundError, match=r"my_gone\.helper"):
        importlib.import_module("my_user")


def test_a_class_typed_into_a_notebook_is_known_by_what_it_does(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write("my_module.py", "def used(): return 1\n")

    def typed(text: str) -> str | None:
        cell = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", cell)
        exec(compile(textwrap.dedent(text), "<cell>", "exec"), vars(cell))  # noqa: S102  a notebook
        return source_of("__main__.Press")

    plain = """
        import my_module
        SCALE = 2
        def helper(x): return x * SCALE
        class Press:
            window = 4
            def score(self): return helper(1) + my_module.used()
        """
    before = typed(plain)
    assert before is not None
    assert user_code.is_users(before)
    assert typed("# another cell\n\n" + textwrap.dedent(plain)) == before
    assert typed(plain + "    unrelated = 1\n") != before  # a field of the class
    assert typed(textwrap.dedent(plain) + "unrelated = 1\n") == before
    others = [("SCALE = 2", "SCALE = 3"), ("x * SCALE", "x + SCALE"), ("window = 4", "window = 5"),
              ("helper(1)", "helper(2)")]  # fmt: skip
    changed = {typed(plain.replace(*pair)) for pair in others}
    home.write("my_module.py", "def used(): return 2\n")
    sys.modules.pop("my_module", None)
    assert len(changed | {before, typed(plain)}) == 6
    assert typed("x = 1") is None


def test_a_point_of_an_older_kvx_is_known_by_its_versions() -> None:
    def info(target: str, **more: object) -> dict[str, object]:
        versions = {"versions": {"kvpress": "0.5.5"}}
        return {
            "config": {"press": {"method": {"_target_": target}}},
            "provenance": versions,
        } | more

    assert press_code(info("kvpress.SnapKVPress")) == {}
    assert press_code(info("my.Press")) == {"my.Press": user_code.NOT_NOTED}
    noted = {"kvpress.KnormPress": "kvpress 0.5.6"}
    assert press_code(info("kvpress.KnormPress", sources=noted)) == noted


def test_a_press_that_is_none_has_no_source() -> None:
    assert sources_of(None) == {}


def test_an_edited_checkout_of_a_library_is_known_by_more_than_its_version(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "LIBRARIES", ("my_library",))
    user_code._is_checkout.cache_clear()
    file = home.write("my_library/__init__.py", "x = 1\n")
    before = source_of("my_library.Press")
    file.write_text("x = 2\n")
    assert before is not None
    assert not user_code.is_users(before)
    assert source_of("my_library.Press") != before
    user_code._is_checkout.cache_clear()
    user_code._version.cache_clear()
