"""Importers on hostile and broken sources: no file from outside, no picture of another page, no trace, no silent loss."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedLine
from dsocr.data.importers.cutting import CutError, cut_line
from dsocr.data.importers.marks import apply_policy
from dsocr.data.importers.preparing import PrepareOptions, prepare_dataset
from dsocr.data.importers.sources import parse_annotations


PAGE = (
    '<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">'
    '<Page imageFilename="{name}" imageWidth="400" imageHeight="300">{body}</Page></PcGts>'
)
LINE = (
    '<TextLine id="{id}"><Coords points="30,30 180,30 180,70 30,70"/>'
    '<TextEquiv index="{index}"><Unicode>{text}</Unicode></TextEquiv></TextLine>'
)
BOX = {"x": 10, "y": 10, "width": 50, "height": 20}
ALTO = (
    '<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description><sourceImageInformation><fileName>{name}'
    '</fileName></sourceImageInformation></Description><Layout><Page WIDTH="400" HEIGHT="300"><PrintSpace><TextLine '
    'HPOS="30" VPOS="30" WIDTH="100" HEIGHT="40"><String CONTENT="x"/></TextLine></PrintSpace></Page></Layout></alto>'
)


def line(text, identity="l", index="0"):
    return LINE.format(text=text, id=identity, index=index)


def region(identity, *lines):
    return f'<TextRegion id="{identity}">{"".join(lines)}</TextRegion>'


def draw(path, shift=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (400, 300), (240, 235, 220))
    ImageDraw.Draw(image).rectangle((40 + shift, 40, 160 + shift, 60), fill=(20, 20, 60))
    image.save(path)
    return path


def read(source):
    bad = BadSamples("skip")
    return list(parse_annotations(source, bad)), bad


def source(folder, kind, name):
    """A source file of a kind that names one image."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "page.xml": PAGE.format(name=name, body=region("r", line("x"))),
        "alto.xml": ALTO.format(name=name),
        "coco.json": {
            "images": [{"id": 1, "file_name": name}],
            "annotations": [{"image_id": 1, "bbox": [30, 30, 100, 40], "text": "x"}],
        },
        "studio.json": [
            {
                "data": {"image": f"/data/local-files/?d={name}"},
                "annotations": [{"result": [{"id": "a", "type": "textarea", "value": {**BOX, "text": ["x"]}}]}],
            }
        ],
        "chat.json": [{"messages": [{"role": "assistant", "content": "x"}], "images": [name]}],
    }
    content = contents[kind]
    path = folder / kind
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["page.xml", "alto.xml", "coco.json", "studio.json", "chat.json"])
@pytest.mark.parametrize("way", ["../secret/id.png", "link.png"])
def test_no_picture_leaves_its_folder(tmp_path, kind, way):
    secret = draw(tmp_path / "secret" / "id.png")
    path = source(tmp_path / "export", kind, way)
    if way == "link.png":
        (tmp_path / "export" / "link.png").symlink_to(secret)
    with pytest.raises(ValueError, match="no usable sample"):
        prepare_dataset(path, tmp_path / "out", PrepareOptions(), BadSamples("skip"))
    images, bad = read(path)
    assert images == [] and bad.counts == {"outside_folder": 1}
    # The same source with a picture in its own folder is read.
    own = source(tmp_path / "own", kind, "id.png")
    draw(tmp_path / "own" / "id.png")
    assert prepare_dataset(own, tmp_path / "out2", PrepareOptions(), BadSamples()) == 1


def test_a_missing_picture_is_not_replaced_by_that_of_another_page(tmp_path):
    draw(tmp_path / "p.png")
    (tmp_path / "a.xml").write_text(PAGE.format(name="p.png", body=region("r", line("of the first"))))
    (tmp_path / "b.xml").write_text(PAGE.format(name="letter2/p.png", body=region("r", line("of the second"))))
    images, bad = read(tmp_path)
    assert [image.lines[0].text for image in images] == ["of the first"]
    assert bad.counts == {"doubtful_image": 1} and "b.xml" in bad.entries[0]["where"]
    # Alone, the second page takes the picture: an export that was moved beside its images.
    (tmp_path / "a.xml").unlink()
    assert read(tmp_path)[0][0].image == tmp_path / "p.png"


def test_label_studio_strips_its_own_prefix_alone(tmp_path):
    draw(tmp_path / "1.png")
    path = source(tmp_path, "studio.json", "letter-1.png")
    assert read(path)[0][0].image == tmp_path / "letter-1.png"
    path = source(tmp_path, "studio.json", "ab12cd34-1.png")
    assert read(path)[0][0].image == tmp_path / "1.png"


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, [[]], float("inf"), {"text": 1}], ids=repr)
@pytest.mark.parametrize("kind", ["coco.json", "studio.json", "chat.json"])
def test_one_malformed_entry_does_not_end_an_import(tmp_path, kind, wrong):
    """Every value of an entry is replaced in turn; the sound entry beside it is always read."""
    draw(tmp_path / "id.png")
    sound = json.loads(source(tmp_path, kind, "id.png").read_text())
    entries = [sound["images"], sound["annotations"]] if kind == "coco.json" else [sound]

    def places(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield (*path, key)
            yield from places(inner, (*path, key))

    tried = 0
    for which, table in enumerate(entries):
        for place in [(), *places(table[0])]:
            content = json.loads(json.dumps(sound))
            broken = ([content["images"], content["annotations"]] if kind == "coco.json" else [content])[which]
            target = [json.loads(json.dumps(broken[0]))]
            if kind == "coco.json" and which == 0 and target[0] and place != ("id",):
                target[0]["id"] = 2
            inner = target
            for key in (0, *place)[:-1]:
                inner = inner[key]
            inner[(0, *place)[-1]] = wrong
            broken.append(target[0])
            (tmp_path / kind).write_text(json.dumps(content))
            images, bad = read(tmp_path / kind)
            texts = [line.text for image in images for line in image.lines] + [image.text for image in images]
            assert "x" in texts, (place, wrong)
            assert len(images) + bad.counts.total() >= 1 + (kind != "coco.json"), (place, wrong)
            tried += 1
    assert tried > 3


def test_page_xml_with_numbers_that_are_none(tmp_path):
    draw(tmp_path / "p.png")
    (tmp_path / "a.xml").write_text(PAGE.format(name="p.png", body=region("r", line("x", index="first"))))
    (tmp_path / "b.xml").write_text(PAGE.format(name="p.png", body=region("r", line("y"))))
    nan = line("z").replace("30,30 180,30", "nan,30 inf,30")
    (tmp_path / "c.xml").write_text(PAGE.format(name="p.png", body=region("r", nan)))
    images, bad = read(tmp_path)
    assert bad.counts == {"malformed": 1} and "a.xml" in bad.entries[0]["where"]
    assert [image.lines[0].text for image in images] == ["y", "z"]
    with pytest.raises(CutError, match="neither a polygon nor a box"):
        cut_line(Image.new("RGB", (400, 300)), images[1].lines[0], (1, 1))


def test_page_xml_keeps_lines_of_every_region_in_the_reading_order(tmp_path):
    draw(tmp_path / "p.png")
    order = (
        '<ReadingOrder><OrderedGroup id="g"><RegionRefIndexed index="2" regionRef="r1"/>'
        '<OrderedGroupIndexed id="h" index="1" regionRef="r2"><RegionRefIndexed index="0" regionRef="r3"/>'
        '</OrderedGroupIndexed><RegionRefIndexed index="0" regionRef="r4"/></OrderedGroup></ReadingOrder>'
    )
    commented = line("two").replace("two", "<!-- unsure -->two <b>words</b>")
    advert = f'<AdvertRegion id="r3">{line("three")}</AdvertRegion>'
    alone = (
        '<TextRegion id="r4"><Coords points="30,30 180,30 180,70"/><TextEquiv><Unicode>four\nlines</Unicode></TextEquiv>'
        "</TextRegion>"
    )
    body = order + region("r1", line("one")) + region("r2", commented) + advert + alone
    (tmp_path / "a.xml").write_text(PAGE.format(name="p.png", body=body))
    (image,), bad = read(tmp_path)
    assert [found.text for found in image.lines] == ["four\nlines", "two words", "three", "one"] and not bad.counts
    bad = BadSamples("skip")
    assert prepare_dataset(tmp_path, tmp_path / "lines", PrepareOptions(), bad) == 3
    assert bad.counts == {"several_lines": 1}
    assert prepare_dataset(tmp_path, tmp_path / "pages", PrepareOptions(level="page"), BadSamples()) == 1
    row = json.loads((tmp_path / "pages" / "metadata.jsonl").read_text())
    assert row["text"] == "four\nlines\ntwo words\nthree\none"


@pytest.mark.parametrize("angle", [0, 30, 90, 200])
def test_a_rotated_rectangle_is_cut_upright(tmp_path, angle):
    """The page is turned with Pillow; the line must come back as it was before."""
    line_image = Image.effect_noise((120, 40), 90).resize((120, 40)).convert("RGB")
    page = Image.new("RGB", (600, 400), (240, 235, 220))
    turned = line_image.rotate(-angle, expand=True, fillcolor=(240, 235, 220), resample=Image.Resampling.BICUBIC)
    page.paste(turned, (200, 150))
    radians = np.radians(angle)
    turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    centre = np.array([200 + turned.width / 2, 150 + turned.height / 2])
    left, top = centre + turn @ np.array([-60, -20])
    value = {"x": left / 6, "y": top / 4, "width": 120 / 6, "height": 40 / 4, "rotation": angle, "text": ["x"]}
    page.save(tmp_path / "p.png")
    result = {"type": "textarea", "original_width": 600, "original_height": 400, "value": value}
    task = {"data": {"image": "p.png"}, "annotations": [{"result": [result, {**result, "value": {**value, **BOX}}]}]}
    (tmp_path / "e.json").write_text(json.dumps([task]))
    (image,), _ = read(tmp_path / "e.json")
    # Results without ids are told apart by their geometry.
    assert len(image.lines) == 2
    cut = cut_line(page, image.lines[0], (6, 4))
    assert abs(cut.width - 120) <= 1 and abs(cut.height - 40) <= 1
    inner = (slice(4, 36), slice(4, 116))
    ours, wanted = (np.asarray(i.resize((120, 40)).convert("L"), dtype=float)[inner] for i in (cut, line_image))
    assert np.corrcoef(ours.ravel(), wanted.ravel())[0, 1] > (0.98 if angle % 90 == 0 else 0.6)


def test_coordinates_that_are_no_numbers_are_refused():
    page = Image.new("RGB", (100, 100))
    with pytest.raises(CutError, match="no numbers"):
        cut_line(page, AnnotatedLine("x", "l", box=(0, 0, float("nan"), 5)), (1, 1))


def test_stripping_marks_keeps_the_lines_of_a_page():
    assert apply_policy("won¬\nderful [?]  day", "strip") == "won\nderful day"
