"""Which passes there are: irloom's own, those of files and folders, those of installed packages."""

import json

import pytest

from irloom.ir.errors import PipelineError
from irloom.ir.parse import parse
from irloom.ir.plugins import PluginWarning
from irloom.passes import PASSES, Pass, load_plugin, name_of, page, parse_pipeline, run_pipeline
from irloom.passes.registry import Registry
from tests.packages import install, pass_file


class TestOwn:
    def test_every_pass_has_a_page_and_is_named_after_its_file(self):
        for name, cls in PASSES.items():
            assert name_of(cls) == name
            assert page(name).strip(), f"{name} has no docstring"


class TestFiles:
    def test_a_keyword_ends_with_an_underscore(self, tmp_path):
        (tmp_path / "import_.py").write_text(pass_file("Import"))
        found = Registry().register_file(tmp_path / "import_.py")
        assert found and name_of(found) == "import"

    def test_a_file_brings_passes_and_ops(self, tmp_path):
        path = tmp_path / "quiet.py"
        path.write_text(
            "from dataclasses import dataclass\n"
            "from irloom.ir.op import op\n"
            "from irloom.ir.ops import neg\n"
            "from irloom.passes import Pass, Rewrite, apply\n\n"
            "@op('~b -> ~b')\ndef plugin_silence(x):\n    'No sound.'\n    return -x\n\n"
            "class Rule(Rewrite):\n"
            "    def match(self, x):\n        return neg(x)\n"
            "    def replace(self, x):\n        return plugin_silence(x)\n\n"
            "@dataclass(frozen=True)\n"
            "class Quiet(Pass):\n    'Make less noise.'\n"
            "    def run(self, m):\n        return apply(m, [Rule()])\n"
        )
        registry = Registry()
        registry.register(path)
        assert "quiet" in registry
        m, _ = run_pipeline(
            parse("def main(x: f32[T]):\n    y = neg(x)\n    return y"), [registry["quiet"]()]
        )
        assert [n.op.name for n in m.main.nodes] == ["plugin_silence"]

    def test_a_folder_is_a_package_whose_files_are_a_pass_each(self, tmp_path):
        folder = tmp_path / "my-passes"
        folder.mkdir()
        (folder / "shared.py").write_text("WORD = 'quiet'\n")
        (folder / "be_loud.py").write_text(pass_file("Loud", top="from .shared import WORD"))
        (folder / "be_still.py").write_text(pass_file("Still", "after = ('be-loud',)"))
        (folder / "test_still.py").write_text("raise AssertionError('a test is no plugin')\n")
        registry = Registry()
        assert [name_of(p) for p in registry.register(folder)] == ["be-loud", "be-still"]
        assert registry["be-still"].after == ("be-loud",)

    def test_a_package_that_is_not_installed_keeps_its_name(self, tmp_path):
        folder = tmp_path / "loom_unpacked"
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "words.py").write_text("WORD = 'quiet'\n")
        (folder / "be_calm.py").write_text(pass_file("Calm", top="from loom_unpacked.words import WORD"))
        assert [name_of(p) for p in Registry().register(folder)] == ["be-calm"]
        (tmp_path / "json").mkdir()
        (tmp_path / "json" / "__init__.py").touch()
        (tmp_path / "json" / "be_calm.py").write_text(pass_file("Calm"))
        with pytest.raises(PipelineError) as caught:
            Registry().register(tmp_path / "json")
        assert str(caught.value) == (
            f"plugin {tmp_path / 'json'} does not load: ImportError: "
            f"there is a module 'json' already, {json.__file__}: rename the folder"
        )

    @pytest.mark.parametrize(
        ("file", "text", "message"),
        [
            ("none.py", None, "plugin {path}: no such file\nhint: give a Python file, or a folder of them"),
            (
                "bad.py",
                "x = 1\nimport nothing_of_that_name",
                (
                    "plugin {path} does not load: "
                    "ModuleNotFoundError: No module named 'nothing_of_that_name'\n  --> {path}:2"
                ),
            ),
            (
                "quits.py",
                "import sys\nsys.exit(3)",
                "plugin {path} does not load: SystemExit: 3\n  --> {path}:2",
            ),
            ("text.txt", "a pass", "plugin {path} does not load: ImportError: it is not a Python file"),
            (
                "fuse_mlp.py",
                pass_file("FuseMlp"),
                "pass 'fuse-mlp' is defined by both irloom itself and {path}\nhint: rename the file",
            ),
            (
                "default.py",
                pass_file("Default"),
                "pass 'default' is defined by both irloom itself and {path}\nhint: rename the file",
            ),
            (
                "eager.py",
                pass_file("Eager", "after = ('raise')"),
                (
                    "plugin {path} does not load: PipelineError: "
                    "Eager: `after` is 'raise', not a tuple: ('raise',)\n  --> {path}:6"
                ),
            ),
            (
                "typed.py",
                pass_file("Typed", "before: tuple[str, ...] = ('raise',)"),
                (
                    "plugin {path} does not load: PipelineError: "
                    "Typed: `before` has a type, as options do: before = ('raise',)\n  --> {path}:6"
                ),
            ),
            (
                "both.py",
                pass_file("One") + pass_file("Two"),
                (
                    "plugin {path} defines 2 passes: One, Two\n"
                    "hint: one file is one pass, named after the file; --plugin also takes a folder of files"
                ),
            ),
        ],
    )
    def test_a_file_that_cannot_be_loaded_is_named(self, tmp_path, file, text, message):
        path = tmp_path / file
        if text is not None:
            path.write_text(text)
        with pytest.raises(PipelineError) as caught:
            Registry().register(path)
        assert str(caught.value) == message.format(path=path)

    def test_options_of_a_class_without_its_decorator_are_missed_by_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr(PASSES, "_files", {})  # what is loaded here is forgotten
        text = pass_file("Plain", "level: int = 1").replace("@dataclass(frozen=True)", "")
        (tmp_path / "plain_one.py").write_text(text)
        load_plugin(tmp_path / "plain_one.py")
        with pytest.raises(PipelineError) as caught:
            parse_pipeline("plain-one(level=3)")
        assert str(caught.value) == (
            "plain-one: no option 'level'\nhint: Plain is no dataclass: put @dataclass(frozen=True) above it"
        )

    def test_a_folder_without_passes_is_refused(self, tmp_path):
        (tmp_path / "passes").mkdir()
        with pytest.raises(PipelineError) as caught:
            Registry().register(tmp_path / "passes")
        assert str(caught.value) == (
            f"plugin {tmp_path / 'passes'}: no Python file is in it\nhint: a pass is a file: quiet.py"
        )


class TestPackages:
    @pytest.fixture(autouse=True)
    def site(self, tmp_path, monkeypatch):
        """A folder of installed packages."""
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    def offer(self, site, package, name, text=None, value=None, **more):
        module = f"{package.replace('-', '_')}_{name.replace('-', '_')}"
        text = pass_file("Shout") if text is None else text
        install(
            site,
            package,
            {f"{module}.py": text},
            {"irloom.passes": {name: value or f"{module}:Shout"}},
            **more,
        )
        return module

    def test_a_package_offers_a_pass_under_a_name_of_its_choice(self, site):
        self.offer(site, "loom-a", "shout")
        assert name_of(PASSES["shout"]) == "shout"
        assert issubclass(Registry()["shout"], Pass)
        assert [name_of(type(p)) for p in parse_pipeline("canonicalize, shout")][-1] == "shout"

    def test_the_entry_point_may_name_the_module_of_the_pass(self, site):
        self.offer(site, "loom-m", "shout", value="loom_m_shout")
        assert Registry()["shout"].__name__ == "Shout"

    @pytest.mark.parametrize(
        ("package", "text", "value", "more", "message"),
        [
            (
                "loom-b",
                "import nothing_of_that_name",
                None,
                {},
                (
                    "pass 'shout' of loom-b 1.0 does not load: "
                    "ModuleNotFoundError: No module named 'nothing_of_that_name'\n"
                    "hint: `pip install -U loom-b` or `pip uninstall loom-b`\n"
                    "  --> {site}/loom_b_shout.py:1"
                ),
            ),
            (
                "loom-c",
                None,
                "loom_c_shout:Whisper",
                {},
                (
                    "pass 'shout' of loom-c 1.0 does not load: "
                    "AttributeError: module 'loom_c_shout' has no attribute 'Whisper'\n"
                    "hint: `pip install -U loom-c` or `pip uninstall loom-c`"
                ),
            ),
            (
                "loom-d",
                "Shout = print",
                None,
                {},
                (
                    "pass 'shout' of loom-d 1.0 is loom_d_shout:Shout, "
                    "a builtin_function_or_method: it has to name a Pass\n"
                    "hint: `pip install -U loom-d` or `pip uninstall loom-d`"
                ),
            ),
            (
                "loom-e",
                pass_file("One") + pass_file("Two"),
                "loom_e_shout",
                {},
                (
                    "pass 'shout' of loom-e 1.0 is loom_e_shout, "
                    "a module of 2 passes (One, Two): it has to name one class\n"
                    "hint: `pip install -U loom-e` or `pip uninstall loom-e`"
                ),
            ),
            (
                "loom-f",
                "raise AssertionError('a package for another irloom is not imported')",
                None,
                {"requires": "irloom (>=0.2,<0.3)", "version": "2.1"},
                (
                    "pass 'shout' of loom-f 2.1 needs irloom<0.3,>=0.2, this is irloom 0.1.0\n"
                    "hint: `pip install -U loom-f` or `pip uninstall loom-f`"
                ),
            ),
            (
                "loom-g",
                None,
                None,
                {"requires": "irloom >"},
                (
                    "pass 'shout' of loom-g 1.0 requires 'irloom >', which cannot be read\n"
                    "hint: `pip install -U loom-g` or `pip uninstall loom-g`"
                ),
            ),
        ],
        ids=["import", "attribute", "class", "several", "version", "metadata"],
    )
    def test_what_does_not_load_is_an_error_when_asked_for_and_else_left_out(
        self, site, package, text, value, more, message
    ):
        self.offer(site, package, "shout", text, value, **more)
        registry, message = Registry(), message.format(site=site)
        for _ in range(2):
            with pytest.raises(PipelineError) as caught:
                registry["shout"]
            assert str(caught.value) == message
        with pytest.warns(PluginWarning) as warned:
            known = [*registry, *registry]
        assert "shout" not in known
        assert [str(w.message) for w in warned] == [f"left out: {message}"], "it is said once"

    def test_a_package_for_this_irloom_is_welcome(self, site):
        self.offer(site, "loom-h", "shout", requires="irloom>=0.1,<0.2")
        self.offer(site, "loom-i", "murmur", requires="irloom>=9; extra == 'future'")
        registry = Registry()
        assert {"shout", "murmur"} <= set(registry)

    def test_a_clash_names_both_packages(self, site):
        self.offer(site, "loom-j", "shout")
        self.offer(site, "loom-k", "shout", version="3.2")
        registry = Registry()
        with pytest.raises(PipelineError) as caught:
            registry["shout"]
        said = str(caught.value)
        assert said in {
            (
                "pass 'shout' is defined by both loom-j 1.0 and loom-k 3.2\n"
                "hint: `pip uninstall loom-j` or `pip uninstall loom-k`"
            ),
            (
                "pass 'shout' is defined by both loom-k 3.2 and loom-j 1.0\n"
                "hint: `pip uninstall loom-k` or `pip uninstall loom-j`"
            ),
        }
        assert registry["canonicalize"], "what does not clash goes on"
        with pytest.warns(PluginWarning):
            assert "shout" not in dict(registry)

    def test_a_name_of_irlooms_own_is_taken(self, site):
        self.offer(site, "loom-l", "fuse-mlp")
        with pytest.raises(PipelineError) as caught:
            Registry()["fuse-mlp"]
        assert str(caught.value) == (
            "pass 'fuse-mlp' is defined by both irloom itself and loom-l 1.0\nhint: `pip uninstall loom-l`"
        )

    def test_a_file_does_not_take_the_name_of_a_package(self, site, tmp_path):
        self.offer(site, "loom-n", "shout")
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "shout.py").write_text(pass_file("Shout"))
        with pytest.raises(PipelineError, match=r"is defined by both loom-n 1\.0 and"):
            Registry().register(tmp_path / "files" / "shout.py")
