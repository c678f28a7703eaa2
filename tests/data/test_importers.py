"""Every door for data: each importer on a small file of its kind and on broken ones, cutting, marks, and the recipe."""

import json

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from helpers.recipes import load_recipe
from PIL import Image, ImageDraw

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import PrepareArguments
from dsocr.common.errors import explained
from dsocr.data import BadSampleError, BadSamples, load_ocr_dataset
from dsocr.data.importers.annotations import AnnotatedLine, find_image
from dsocr.data.importers.cutting import CutError, cut_line, open_page, paper_colour
from dsocr.data.importers.marks import apply_policy, has_marks
from dsocr.data.importers.preparing import PrepareOptions, prepare_dataset
from dsocr.data.importers.sources import parse_annotations
from dsocr.data.importers.xml_files import XmlError, parse_points, parse_xml


PAPER, INK, NEIGHBOUR = (240, 235, 220), (20, 20, 60), (200, 0, 0)
PAGE_2013 = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2013-07-15"
PAGE_2019 = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"


@pytest.fixture
def page(tmp_path):
    """A page of 400x300 pixels: two lines of ink, and red in the corner between a polygon and its box."""
    image = Image.new("RGB", (400, 300), PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 50, 200, 60), fill=INK)
    draw.rectangle((40, 150, 300, 160), fill=INK)
    draw.rectangle((200, 30, 220, 40), fill=NEIGHBOUR)
    image.save(tmp_path / "page1.jpg", quality=100)
    return tmp_path / "page1.jpg"


def page_xml(namespace, *, name="page1.jpg", size=(400, 300), order=("r2", "r1"), lines=None):
    groups = "".join(f'<RegionRefIndexed index="{i}" regionRef="{r}"/>' for i, r in enumerate(order))
    lines = lines or {
        "r1": ("30,30 180,30 220,70 30,70", "second in the reading order"),
        "r2": ("30,140 310,140 310,170 30,170", "first"),
    }
    regions = "".join(
        f'<TextRegion id="{region}"><Coords points="0,0 400,0 400,300"/><TextLine id="l_{region}">'
        f'<Coords points="{points}"/><TextEquiv index="1"><Unicode>worse</Unicode></TextEquiv>'
        f'<TextEquiv index="0"><Unicode>{text}</Unicode></TextEquiv></TextLine></TextRegion>'
        for region, (points, text) in lines.items()
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><PcGts xmlns="{namespace}"><Page imageFilename="{name}" '
        f'imageWidth="{size[0]}" imageHeight="{size[1]}"><ReadingOrder><OrderedGroup id="g">{groups}</OrderedGroup>'
        f"</ReadingOrder>{regions}</Page></PcGts>"
    )


def alto(version, *, size=(400, 300), unit="pixel", shape=True):
    polygon = '<Shape><Polygon POINTS="30 30 180 30 220 70 30 70"/></Shape>' if shape else ""
    return (
        f'<alto xmlns="http://www.loc.gov/standards/alto/ns-v{version}#"><Description><MeasurementUnit>{unit}'
        "</MeasurementUnit><sourceImageInformation><fileName>page1.jpg</fileName></sourceImageInformation></Description>"
        f'<Layout><Page ID="p" WIDTH="{size[0]}" HEIGHT="{size[1]}"><PrintSpace><TextBlock ID="b">'
        f'<TextLine ID="l1" HPOS="30" VPOS="30" WIDTH="190" HEIGHT="40">{polygon}<String CONTENT="Dear"/><SP/>'
        '<String CONTENT="si"/><HYP CONTENT="-"/></TextLine>'
        '<TextLine ID="l2" HPOS="30" VPOS="140" WIDTH="280" HEIGHT="30"><String CONTENT=" "/></TextLine>'
        "</TextBlock></PrintSpace></Page></Layout></alto>"
    )


def read(source, on_bad="raise"):
    bad = BadSamples(on_bad)
    return list(parse_annotations(source, bad)), bad


def prepare(source, output, on_bad="skip", **options):
    bad = BadSamples(on_bad)
    prepare_dataset(source, output, PrepareOptions(**options), bad)
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, bad


@pytest.mark.parametrize("namespace", [PAGE_2013, PAGE_2019])
def test_page_xml(page, namespace):
    (page.parent / "page1.xml").write_text(page_xml(namespace), encoding="utf-8")
    (annotated,), _ = read(page.parent)
    assert annotated.image == page and annotated.declared_size == (400, 300) and annotated.page == "page1"
    assert [line.text for line in annotated.lines] == ["first", "second in the reading order"]
    assert annotated.lines[0].polygon[0] == (30, 140)


def test_transkribus_keeps_its_page_files_in_a_folder_of_their_own(page):
    folder = page.parent / "page"
    folder.mkdir()
    (folder / "page1.xml").write_text(page_xml(PAGE_2013), encoding="utf-8")
    (page.parent / "mets.xml").write_text("<mets/>", encoding="utf-8")
    (annotated,), bad = read(page.parent)
    assert annotated.image == page and not bad.counts


@pytest.mark.parametrize("version", [2, 3, 4])
def test_alto(page, version):
    (page.parent / "x.xml").write_text(alto(version), encoding="utf-8")
    (annotated,), _ = read(page.parent / "x.xml")
    assert [line.text for line in annotated.lines] == ["Dear si-", ""]
    assert annotated.lines[0].polygon and annotated.lines[0].box == (30, 30, 220, 70)
    rows, bad = prepare(page.parent / "x.xml", page.parent / "out")
    assert [row["text"] for row in rows] == ["Dear si-"] and bad.counts == {"empty_text": 1}


def test_alto_in_tenths_of_millimetres_is_scaled_by_its_page(page):
    (page.parent / "a.xml").write_text(alto(4, shape=False), encoding="utf-8")
    doubled = alto(4, size=(800, 600), unit="mm10", shape=False).replace('WIDTH="190"', 'WIDTH="380"')
    for name in ("HPOS", "VPOS"):
        doubled = doubled.replace(f'{name}="30"', f'{name}="60"')
    (page.parent / "b.xml").write_text(doubled.replace('HEIGHT="40"', 'HEIGHT="80"'), encoding="utf-8")
    _first, _ = prepare(page.parent / "a.xml", page.parent / "out_a")
    _second, _ = prepare(page.parent / "b.xml", page.parent / "out_b")
    pictures = [Image.open(page.parent / f"out_{x}" / "images" / "0000000.png") for x in "ab"]
    assert pictures[0].size == (190, 40) and np.array_equal(*map(np.asarray, pictures))


def test_real_alto_pages(shared, tmp_path):
    rows, bad = prepare(shared / "data" / "stanford1905_pages", tmp_path / "out")
    assert len(rows) == 26 and bad.counts == {"empty_text": 1}
    assert rows[0]["text"] == "GEO. D. WORSWICK," and len({row["page"] for row in rows}) == 2
    assert len(load_ocr_dataset(tmp_path / "out", progress=False)) == 26


def test_label_studio(page):
    results = [
        {"id": "a", "type": "rectanglelabels", "value": {"x": 10, "y": 10, "width": 50, "height": 20}},
        {
            "id": "a",
            "type": "textarea",
            "value": {"x": 10, "y": 10, "width": 50, "height": 20, "text": ["Dear", "sir"]},
        },
        {"id": "b", "type": "polygonlabels", "value": {"points": [[10, 50], [75, 50], [75, 57], [10, 57]]}},
        {"id": "b", "type": "textarea", "value": {"points": [[10, 50], [75, 50], [75, 57]], "text": ["below"]}},
    ]
    tasks = [
        {"data": {"image": "/data/upload/3/ab12cd34-page1.jpg"}, "annotations": [{"result": results}]},
        {"data": {"image": "other.jpg"}, "annotations": [{"was_cancelled": True, "result": results}]},
        {
            "data": {"image": "page2.jpg"},
            "annotations": [{"result": [{"type": "textarea", "value": {"text": ["all"]}}]}],
        },
    ]
    path = page.parent / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    Image.open(page).rotate(180).save(page.parent / "page2.jpg")
    annotated, bad = read(path, "skip")
    annotated.sort(key=lambda image: image.page != "ab12cd34-page1")
    assert bad.counts == {"not_annotated": 1}
    assert annotated[0].image == page and annotated[0].declared_size == (100, 100)
    assert [line.text for line in annotated[0].lines] == ["Dear sir", "below"]
    assert annotated[0].lines[0].box == (10, 10, 60, 30) and annotated[1].text == "all"
    rows, _ = prepare(path, page.parent / "out")
    assert Image.open(page.parent / "out" / rows[-2]["image"]).size == (200, 60)


def test_coco(page):
    content = {
        "images": [{"id": 1, "file_name": "sub/page1.jpg", "width": 400, "height": 300}],
        "annotations": [
            {"id": 7, "image_id": 1, "bbox": [30, 40, 190, 30], "attributes": {"translation": "привет"}},
            {"id": 8, "image_id": 1, "segmentation": [[30, 140, 310, 140, 310, 170, 30, 170]], "text": "second"},
            {"id": 9, "image_id": 5, "bbox": [0, 0, 9, 9]},
        ],
    }
    path = page.parent / "coco.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (annotated,), bad = read(path, "skip")
    assert annotated.image == page and bad.counts == {"no_image_name": 1}
    assert [(line.text, line.box) for line in annotated.lines] == [("привет", (30, 40, 220, 70)), ("second", None)]


@pytest.mark.parametrize("as_lines", [True, False])
def test_messages_with_images(page, as_lines):
    chat = [{"role": "user", "content": "<image>Read."}, {"role": "assistant", "content": "Dear sir"}]
    parts = [
        {"role": "user", "content": [{"type": "image", "image": "page1.jpg"}, {"type": "text", "text": "Read."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "in parts"}]},
    ]
    rows = [
        {"messages": chat, "images": ["page1.jpg"]},
        {"messages": parts},
        {"messages": chat, "images": ["a.png", "b.png"]},
        {"messages": chat[:1], "images": ["page1.jpg"]},
    ]
    path = page.parent / ("chat.jsonl" if as_lines else "chat.json")
    text = "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    annotated, bad = read(path, "skip")
    assert [item.text for item in annotated] == ["Dear sir", "in parts"]
    assert bad.counts == {"not_one_image": 1, "no_answer": 1}


def test_text_files_beside_images(tmp_path):
    for folder, name, image in (("p1", "001", "001.png"), ("p1", "002", "002.bin.png"), ("p2", "001", "001.jpg")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (60, 20), PAPER).save(tmp_path / folder / image)
        (tmp_path / folder / f"{name}.gt.txt").write_text(f"\ufefftext  {folder}\n", encoding="utf-8")
    (tmp_path / "p2" / "002.gt.txt").write_bytes("слово".encode("cp1251"))
    annotated, bad = read(tmp_path, "skip")
    assert [(item.page, item.text) for item in annotated] == [("p1", "text p1"), ("p1", "text p1"), ("p2", "text p2")]
    assert all(item.image.is_file() for item in annotated) and bad.counts == {"not_utf8": 1}


def test_tables_and_the_imagefolder_layout_come_through_too(tmp_path, line_folder):
    assert parse_annotations(line_folder, BadSamples()) is None
    rows, _ = prepare(line_folder, tmp_path / "out")
    source = load_ocr_dataset(line_folder, progress=False)
    assert [row["text"] for row in rows] == source["text"]
    assert all((tmp_path / "out" / row["image"]).is_file() and not row["image"].startswith("/") for row in rows)


@pytest.mark.parametrize(
    ("encoding", "flag"),
    [("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("cp1251", "cp1251"), ("utf-16-be", "utf-16-be")],
)
def test_tables_in_other_encodings(tmp_path, encoding, flag):
    for name in ("1.png", "2.png"):
        Image.linear_gradient("L").resize((60, 20)).save(tmp_path / name)
    table = tmp_path / "metadata.csv"
    text = 'image,text\n1.png,"Милостивый, ""государь"""\n2.png,просто\n'
    table.write_bytes(text.encode(encoding))
    prepare_dataset(table, tmp_path / "out", PrepareOptions(), BadSamples(), encoding=flag)
    texts = load_ocr_dataset(tmp_path / "out", progress=False)["text"]
    assert texts == ['Милостивый, "государь"', "просто"]
    if encoding == "cp1251":
        with pytest.raises(ValueError, match="is not UTF-8.*--encoding cp1251"):
            load_ocr_dataset(table, progress=False)
        with pytest.raises(ValueError, match="knows no such encoding"):
            load_ocr_dataset(table, encoding="nonsense", progress=False)


def test_what_is_broken_is_counted_and_named(page, tmp_path):
    folder = page.parent
    (folder / "broken.xml").write_text("<PcGts><Page", encoding="utf-8")
    (folder / "other.xml").write_text("<svg/>", encoding="utf-8")
    (folder / "gone.xml").write_text(page_xml(PAGE_2019, name="gone.jpg"), encoding="utf-8")
    (folder / "nameless.xml").write_text(page_xml(PAGE_2019, name=""), encoding="utf-8")
    (folder / "size.xml").write_text(page_xml(PAGE_2019, size=(400, 400)), encoding="utf-8")
    (folder / "turned.xml").write_text(page_xml(PAGE_2019, size=(300, 400)), encoding="utf-8")
    outside = {"r1": ("900,30 990,30 990,70", "outside"), "r2": ("1,1 2,1 2,2", "small"), "r3": ("x", "nowhere")}
    (folder / "outside.xml").write_text(page_xml(PAGE_2019, lines=outside), encoding="utf-8")
    (folder / "good.xml").write_text(page_xml(PAGE_2019), encoding="utf-8")
    rows, bad = prepare(folder, folder / "out")
    assert len(rows) == 2
    assert bad.counts == {
        "broken_xml": 1,
        "unknown_xml": 1,
        "missing": 1,
        "no_image_name": 1,
        "other_page_size": 2,
        "outside_page": 1,
        "too_small": 1,
        "no_coordinates": 1,
    }
    written = json.loads((folder / "out" / "skipped_samples.json").read_text(encoding="utf-8"))
    messages = {entry["reason"]: entry["message"] for entry in written["samples"]}
    assert "gone.jpg" in messages["missing"] and "outside.xml#l_r1" in messages["outside_page"]
    assert any("rotated after the lines were drawn" in entry["message"] for entry in written["samples"])
    with pytest.raises(BadSampleError, match="broken.xml.*--on_bad_sample skip"):
        prepare(folder, folder / "strict", on_bad="raise")
    assert not (folder / "strict" / "metadata.jsonl").exists()


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE PcGts [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE PcGts [<!ENTITY secret SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE PcGts SYSTEM "http://localhost/x.dtd">',
    ],
)
def test_entities_are_refused(tmp_path, head):
    path = tmp_path / "evil.xml"
    path.write_text(f"<?xml version='1.0'?>{head}<PcGts>&b;&secret;</PcGts>", encoding="utf-8")
    with pytest.raises(XmlError, match="document type|not well-formed"):
        parse_xml(path)


def test_json_of_an_unknown_kind_and_empty_sources_are_said(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="JSON of an unknown kind"):
        read(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(ValueError, match="y.json is damaged, or not JSON"):
        read(tmp_path / "y.json")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.xml").write_text("<alto/>", encoding="utf-8")
    with pytest.raises(ValueError, match="no usable sample"):
        prepare_dataset(tmp_path / "p", tmp_path / "out", PrepareOptions(), BadSamples("skip"))
    assert not (tmp_path / "out" / "metadata.jsonl.part").exists()


def test_images_are_found_with_another_suffix_and_only_nearby(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    found, expected = find_image(tmp_path / "export", "C:\\scans\\a.tif")
    assert found == tmp_path / "images" / "a.png" and found != expected
    assert find_image(tmp_path / "export", "gone.png") == (tmp_path / "export" / "gone.png",) * 2


def test_a_line_is_cut_by_its_polygon_and_the_rest_is_paper(page):
    image, scale = open_page(page, (400, 300))
    outline = ((30, 30), (180, 30), (220, 70), (30, 70))
    masked = cut_line(image, AnnotatedLine("x", "l", outline), scale)
    boxed = cut_line(image, AnnotatedLine("x", "l", box=(30, 30, 220, 70)), scale)
    assert masked.size == boxed.size == (190, 40)
    # The red neighbour stands right of the slanted edge, inside the box.
    assert boxed.getpixel((185, 5))[0] > 180 and boxed.getpixel((185, 5))[1] < 60
    assert np.abs(np.subtract(masked.getpixel((185, 5)), PAPER)).max() < 8
    assert np.abs(np.subtract(masked.getpixel((50, 25)), INK)).max() < 40
    wider = cut_line(image, AnnotatedLine("x", "l", outline), scale, margin=0.25)
    assert wider.size == (210, 60)


def test_paper_is_the_median_of_the_brighter_half():
    pixels = np.array([[240, 235, 220]] * 60 + [[10, 10, 10]] * 50, dtype=np.uint8)
    assert paper_colour(pixels) == (240, 235, 220)


def test_a_rotated_photograph_is_cut_as_its_lines_were_drawn(tmp_path):
    """EXIF says: turn it. Some tools drew on the turned picture, some on the stored one; the declared size tells."""
    stored = Image.new("RGB", (300, 200), PAPER)
    ImageDraw.Draw(stored).rectangle((0, 0, 50, 50), fill=INK)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=100)
    seen, _ = open_page(tmp_path / "photo.jpg", (200, 300))
    raw, _ = open_page(tmp_path / "photo.jpg", (300, 200))
    assert seen.size == (200, 300) and raw.size == (300, 200)
    assert raw.getpixel((10, 10))[0] < 60 and seen.getpixel((190, 10))[0] < 60
    with pytest.raises(CutError, match="300x300"):
        open_page(tmp_path / "photo.jpg", (300, 300))


def test_pages_keep_their_lines_in_reading_order(page):
    (page.parent / "page1.xml").write_text(page_xml(PAGE_2019), encoding="utf-8")
    rows, _ = prepare(page.parent, page.parent / "out", level="page")
    assert [row["text"] for row in rows] == ["first\nsecond in the reading order"]
    assert Image.open(page.parent / "out" / rows[0]["image"]).size == (400, 300)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("Dear [?] sir", "Dear sir"),
        ("Dear [illegible]", "Dear"),
        ("a <unclear>word</unclear> <gap/> b", "a word b"),
        ("[unclear: perhaps] so", "perhaps so"),
        ("Милостивый [нрзб.] государь", "Милостивый государь"),
        ("won¬", "won"),
        ("Smith[?] came", "Smith came"),
        ("in 1905 [sic]", "in 1905"),
    ],
)
def test_editorial_marks(text, stripped):
    assert has_marks(text)
    assert apply_policy(text, "keep") == text
    assert apply_policy(text, "strip") == stripped
    assert apply_policy(text, "drop") is None


@pytest.mark.parametrize("text", ["a list [1], see (p. 7)", "x < y > z", "why?", "well-known", "wait ..."])
def test_what_stands_on_the_paper_is_no_mark(text):
    assert not has_marks(text)
    assert apply_policy(text, "strip") == text and apply_policy(text, "drop") == text


def test_the_marks_policy_reaches_the_dataset(page):
    lines = {"r1": ("30,30 180,30 220,70 30,70", "Dear [?]"), "r2": ("30,140 310,140 310,170 30,170", "plain")}
    (page.parent / "page1.xml").write_text(page_xml(PAGE_2019, lines=lines), encoding="utf-8")
    texts = {}
    for policy in ("keep", "strip", "drop"):
        rows, bad = prepare(page.parent / "page1.xml", page.parent / policy, marks=policy)
        texts[policy] = [row["text"] for row in rows]
    assert texts == {"keep": ["plain", "Dear [?]"], "strip": ["plain", "Dear"], "drop": ["plain"]}
    assert bad.counts == {"editorial_mark": 1}
    with pytest.raises(ValueError, match="--marks other"):
        apply_policy("x", "other")


def test_the_recipe_from_an_export_to_a_dataset(page, capsys):
    (page.parent / "page1.xml").write_text(page_xml(PAGE_2013), encoding="utf-8")
    before = {path: path.read_bytes() for path in page.parent.iterdir() if path.is_file()}
    recipe = load_recipe("prepare_data")
    argv = [str(page.parent / "page1.xml"), "--output", str(page.parent / "out")]
    recipe.main(parse_recipe(PrepareArguments, argv, None))
    assert "2 samples; train with --dataset_name" in capsys.readouterr().out
    assert load_ocr_dataset(page.parent / "out", progress=False)["page"] == ["page1", "page1"]
    assert {path: path.read_bytes() for path in page.parent.iterdir() if path.is_file()} == before
    with pytest.raises(SystemExit), explained():
        recipe.main(parse_recipe(PrepareArguments, argv, None))
    assert "holds a dataset already" in capsys.readouterr().out
    assert (REPOSITORY / "recipes" / "prepare_data.py").is_file()


def test_points_are_read_in_both_notations():
    assert parse_points("0,0 10,0 10,5") == parse_points("0 0 10 0 10 5") == ((0, 0), (10, 0), (10, 5))
    for text in ("", "1,2 3,4", "1,2 x,4 5,6", "1 2 3 4 5"):
        assert parse_points(text) == ()
