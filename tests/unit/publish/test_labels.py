"""Labels and texts of users come out of figures and tables as they were written."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from items_case import drawn, published_item
from made_up_run import config, make
from matplotlib.figure import Figure
from matplotlib.text import Text

from minillm.config.sections import Style
from minillm.publish.figures.drawing import fonts, save
from minillm.publish.style import latex, latex_row, markdown
from minillm.publish.tables.sheet import Sheet, as_latex, as_markdown

LABELS = [
    "costs $5, not $6",
    "$x_1$ and $$y$$",
    "a {b} %d 100% \\alpha \\$ \\",
    "a|b & c_d ^ ~e~ #1",
    "*a* **b** _c_ `d` [e](f) ![g](h)",
    "<b>x</b> &lt; &amp; <script>alert(1)</script>",
    "数据 模型",
    "עברית (a)",
    "one\ntwo",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "run", config())


def with_label(label: str) -> dict:
    rows = {"source": "embedded", "split": "test", "rows": 8}
    datasets = {name: {**rows, "label": label} for name in ("dolly", "sni")}
    others = {name: {**rows} for name in ("rows", "held", "text", "easy", "hard")}
    return {"datasets": others | datasets}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_label_in_a_figure_is_no_formula(run: Path, label: str) -> None:
    figure = drawn("figure6", run, **with_label(label))
    texts = [text for text in figure.findobj(Text) if label in text.get_text()]
    assert texts and not any(text.get_parse_math() for text in texts)
    figure.draw_without_rendering()


def test_our_own_formulas_are_formulas(run: Path) -> None:
    texts = [text for text in drawn("figure3", run).findobj(Text) if "theta" in text.get_text()]
    assert texts and all(text.get_parse_math() for text in texts)


def test_a_character_that_no_font_has_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], run: Path
) -> None:
    """In the log and in the caption.  Of those for private use no font of a system has any."""
    style = Style(dpi=50)
    for text, note in (("plain", ""), ("a \U0010fffa b", "No font of this machine has \U0010fffa, drawn as")):
        with fonts(style):
            figure = Figure()
            figure.subplots().set_title(text)
            assert save(figure, style, tmp_path, "a").startswith(note)
        assert bool(note) == bool(capfd.readouterr().err)
    sidecar = published_item("figure6", run, tmp_path, **with_label("a \U0010fffa b"))
    assert sidecar["caption"].endswith("drawn as boxes.")


def test_right_to_left_text_is_set_from_right_to_left(tmp_path: Path) -> None:
    """The letters of the label are drawn in visual order: the first one, alef, at the right."""
    from matplotlib._text_helpers import layout
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    font = get_font(fontManager.findfont(FontProperties(family="DejaVu Sans")))
    font.set_size(10, 72)
    glyphs = [item.glyph_index for item in layout("אב", font)]
    assert glyphs == [font.get_char_index(ord(letter)) for letter in "בא"]


class Cells(HTMLParser):
    """The texts of a table's cells, with their lines, and the elements in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.names.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "br" and self.cells:
            self.cells[-1] += "\n"

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@pytest.mark.parametrize("label", LABELS)
def test_a_cell_in_markdown_is_what_was_written(label: str) -> None:
    parser = pytest.importorskip("markdown_it", reason="no Markdown parser here").MarkdownIt("commonmark")
    sheet = Sheet(label, [label, "b"], [[label, label]], [label], [], missing=label)
    text = as_markdown(sheet)
    page = parser.enable("table").enable("strikethrough").render(text)
    found = Cells(page)
    assert [cell.strip() for cell in found.cells[:1] + found.cells[2:3]] == [label, label]
    assert found.names <= {"p", "strong", "em", "br", "table", "thead", "tbody", "tr", "th", "td"}
    assert "$" not in text.replace("\\$", "")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("costs $5 & 6%", r"costs \$5 \& 6\%"),
        (
            "a|b_c \\ {d} ^ ~ #",
            r"a\textbar{}b\_c \textbackslash{} \{d\} \textasciicircum{} \textasciitilde{} \#",
        ),
        ("one\n\ntwo", "one  two"),
    ],
)
def test_latex_is_what_was_written(text: str, made: str) -> None:
    assert latex(text) == made


def test_a_row_of_latex_begins_with_no_option() -> None:
    """After the line break of the row before, "[" and "*" would belong to that."""
    assert latex_row(["[a]", "b"]) == r"{}[a] & b \\" and latex_row(["*", "b"]).startswith("{}*")
    assert latex_row(["a", "[b]"]) == r"a & [b] \\"
    lines = as_latex(Sheet("c", ["a"], [["one\n\ntwo"]], [], [])).split("\n")
    assert r"one\newline \newline two \\" in lines


def test_lines_of_a_markdown_paragraph_begin_nothing() -> None:
    assert markdown("a\n# b\u2028- c") == "a<br># b<br>- c"
