import json
import os
from pathlib import Path

import pytest

from innervision.data import ImageSet, find_images, read_image
from innervision.errors import InnerVisionError


def touch(folder: Path, *names: str) -> Path:
    """Make empty files below a folder: listing does not open them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def annotate(path: Path, *file_names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(file_names)]
    path.write_text(json.dumps({"info": {"year": 2017}, "images": images, "annotations": []}))
    return path


def error(source: str | Path, split: str | None = None) -> str:
    with pytest.raises(InnerVisionError) as caught:
        find_images(source, split)
    message = str(caught.value)
    assert message.count("\n") <= 1
    return message


# Folders


def test_folder_is_searched_in_depth_and_sorted_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/c.png", "a/b/d.webp", "B.JPG", "a.jpeg")
    images = find_images(tmp_path)
    assert images.names == ["B.JPG", "a.jpeg", "a/b/d.webp", "a/c.png", "b.jpg"]
    assert images.paths == [tmp_path / name for name in images.names]
    assert images.missing == []
    assert len(images) == 5


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", ".cache/b.jpg", "labels.txt", "jpg", "a.jpg.part")
    (tmp_path / "folder.jpg").mkdir()
    assert find_images(tmp_path).names == ["a.jpg"]


def test_source_may_be_a_string_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(touch(tmp_path, "photos/a.jpg")))
    assert find_images("~/photos").paths == [tmp_path / "photos" / "a.jpg"]


def test_linked_folders_are_followed_and_circles_are_left(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/b.jpg", "set/sub/a.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "sub" / "circle").symlink_to(tmp_path / "set")
    assert find_images(tmp_path / "set").names == ["linked/b.jpg", "sub/a.jpg"]


def test_link_to_nowhere_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "c.jpg")
    images = find_images(tmp_path)
    assert images.names == ["a.jpg"]
    assert [name for name, _ in images.missing] == ["b.jpg", "c.jpg"]
    assert str(tmp_path / "b.jpg") in images.missing[0][1]


def test_folder_without_images(tmp_path: Path) -> None:
    assert f"no images in {touch(tmp_path, 'readme.txt')}" in error(tmp_path)


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    try:
        open(os.fsencode(tmp_path) + b"/\xff.jpg", "w").close()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (tmp_path / "é.jpg").touch()
    images = find_images(tmp_path)
    assert sorted(images.names) == ["\\xff.jpg", "é.jpg"]
    assert all(path.is_file() for path in images.paths)
    (tmp_path / "\\xff.jpg").touch()  # a file that really is called so
    assert "rename one" in error(tmp_path)


def test_photographs_in_formats_that_are_not_read_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.HEIC", "c.nef", "d.txt")
    [note] = find_images(tmp_path).notes
    assert note.startswith("2 files are of formats that are not read: b.HEIC, c.nef.")
    (tmp_path / "a.jpg").unlink()
    assert "b.HEIC, c.nef" in error(tmp_path)


# COCO folders


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = touch(tmp_path / "coco", "train2017/2.jpg", "train2017/1.jpg", "val2017/9.jpg")
    touch(root, "annotations/panoptic_val2017/9.png")
    annotate(root / "annotations" / "captions_train2017.json", "2.jpg", "1.jpg")
    annotate(root / "annotations" / "panoptic_val2017.json", "9.jpg")
    return root


def test_split_folder_is_a_plain_folder(coco: Path) -> None:
    assert find_images(coco / "train2017").names == ["1.jpg", "2.jpg"]


def test_coco_folder_needs_a_split(coco: Path) -> None:
    message = error(coco)
    assert "train2017, val2017" in message
    assert f"such as {coco / 'val2017'}" in message


def test_several_splits_are_not_mixed_without_annotations_either(tmp_path: Path) -> None:
    touch(tmp_path, "images/train2017/1.jpg", "images/val2017/9.jpg")
    assert "train2017, val2017" in error(tmp_path)
    assert "train2017, val2017" in error(tmp_path / "images")


def test_coco_folder_with_a_split(coco: Path) -> None:
    images = find_images(coco, "val2017")
    assert images.names == ["9.jpg"]
    assert images.paths == [coco / "val2017" / "9.jpg"]


def test_split_below_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/train2017/1.jpg", "images/val2017/9.jpg")
    assert find_images(tmp_path, "val2017").paths == [tmp_path / "images" / "val2017" / "9.jpg"]


def test_only_split_need_not_be_named_and_masks_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "val2017/9.jpg", "annotations/panoptic_val2017/9.png")
    assert find_images(tmp_path).names == ["9.jpg"]


def test_unknown_split(coco: Path) -> None:
    assert str(coco / "images" / "test2017") in error(coco, "test2017")


def test_files_have_no_splits(coco: Path) -> None:
    assert "only a COCO folder has splits" in error(coco / "annotations" / "captions_train2017.json", "train2017")


# COCO annotations


def test_annotations_give_their_order_and_the_names_of_the_folder(coco: Path) -> None:
    images = find_images(coco / "annotations" / "captions_train2017.json")
    assert images.names == ["2.jpg", "1.jpg"]
    assert images.paths == [coco / "train2017" / "2.jpg", coco / "train2017" / "1.jpg"]
    assert sorted(images.names) == find_images(coco / "train2017").names


def test_panoptic_annotations_give_images_and_not_masks(coco: Path) -> None:
    images = find_images(coco / "annotations" / "panoptic_val2017.json")
    assert images.paths == [coco / "val2017" / "9.jpg"]


@pytest.mark.parametrize(
    ("annotations", "folder"),
    [
        ("annotations/captions_train2017.json", "train2017"),
        ("annotations/captions_train2017.json", "images/train2017"),
        ("annotations/person_keypoints_train2017.json", "train2017"),
        ("annotations/instances_train2017_mini.json", "train2017"),
        ("annotations/train.json", "train"),
        ("annotations/train.json", "images"),
        ("annotations/train.json", ""),
        ("captions_train2017.json", "train2017"),
        ("train.json", ""),
        ("train.json", "images"),
    ],
)
def test_images_are_found_beside_their_annotations(tmp_path: Path, annotations: str, folder: str) -> None:
    source = annotate(tmp_path / annotations, "1.jpg")
    touch(tmp_path / folder, "1.jpg")
    assert find_images(source).paths == [tmp_path / folder / "1.jpg"]


def test_annotations_by_relative_path(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(coco / "annotations")
    images = find_images("captions_train2017.json")
    assert images.names == ["2.jpg", "1.jpg"]
    assert all(path.samefile(coco / "train2017" / path.name) for path in images.paths)
    monkeypatch.chdir(coco)
    assert find_images("annotations/captions_train2017.json").paths[0] == Path("train2017/2.jpg")


def test_file_names_may_hold_folders(tmp_path: Path) -> None:
    source = annotate(tmp_path / "annotations" / "all.json", "train2017/1.jpg", "val2017//9.jpg", "./3.jpg")
    touch(tmp_path, "train2017/1.jpg", "val2017/9.jpg", "3.jpg")
    images = find_images(source)
    assert images.names == ["train2017/1.jpg", "val2017/9.jpg", "3.jpg"]
    assert images.paths == [tmp_path / name for name in images.names]


def test_folder_with_most_of_the_images_is_taken_and_the_rest_is_missing(tmp_path: Path) -> None:
    source = annotate(tmp_path / "annotations" / "captions_train2017.json", "1.jpg", "2.jpg", "3.jpg")
    touch(tmp_path, "train2017/3.jpg", "images/train2017/3.jpg", "images/train2017/1.jpg")
    (tmp_path / "images" / "train2017" / "2.jpg").mkdir()
    images = find_images(source)
    assert images.names == ["1.jpg", "3.jpg"]
    assert images.missing == [("2.jpg", f"a folder: {tmp_path / 'images' / 'train2017' / '2.jpg'}")]


def test_image_listed_twice_counts_once(tmp_path: Path) -> None:
    source = annotate(touch(tmp_path, "1.jpg", "2.jpg") / "all.json", "2.jpg", "1.jpg", "./2.jpg", "2.jpg")
    assert find_images(source).names == ["2.jpg", "1.jpg"]


def test_no_folder_holds_the_images(tmp_path: Path) -> None:
    message = error(annotate(tmp_path / "annotations" / "captions_train2017.json", "1.jpg", "2.jpg"))
    assert "none of the 2 images" in message
    for folder in ("train2017", "images/train2017", "annotations", "annotations/train2017"):
        assert str(tmp_path / folder) in message


@pytest.mark.parametrize("whole", [1 << 20, 0])
def test_annotations_before_the_images_are_skipped_over(
    tmp_path: Path, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.data.sources.WHOLE", whole)
    source = touch(tmp_path, "1.jpg") / "all.json"
    caption = 'a "quoted" text, {"images": [{"file_name": "2.jpg"}]}'
    content = {'a "key", {"images': 0, "annotations": [{"caption": caption, "images": ["2.jpg"]}]}
    source.write_text(json.dumps({**content, "images": [{"file_name": "1.jpg"}]}, indent=1), encoding="utf-8-sig")
    assert find_images(source).names == ["1.jpg"]


# Annotations that lead out of their folder


@pytest.mark.parametrize(
    "name",
    ["/etc/a.jpg", "../secret.jpg", "sub/../../secret.jpg", "C:\\a.jpg", "..\\secret.jpg", "\\\\host\\a.jpg"],
)
def test_file_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "secret.jpg", "set/1.jpg")
    message = error(annotate(tmp_path / "set" / "all.json", "1.jpg", name))
    assert name in message
    assert "outside of its folder" in message


def test_links_to_single_files_are_followed(tmp_path: Path) -> None:
    """The caches of the Hub and of DVC are made of them."""
    touch(tmp_path, "blobs/8f3a", "set/1.jpg")
    (tmp_path / "set" / "2.jpg").symlink_to(tmp_path / "blobs" / "8f3a")
    assert find_images(annotate(tmp_path / "set" / "all.json", "1.jpg", "2.jpg")).names == ["1.jpg", "2.jpg"]


def test_linked_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "secrets/2.jpg", "set/1.jpg")
    (tmp_path / "set" / "sub").symlink_to(tmp_path / "secrets")
    assert "sub/2.jpg" in error(annotate(tmp_path / "set" / "all.json", "1.jpg", "sub/2.jpg"))


def test_folder_with_a_longer_name_is_outside(tmp_path: Path) -> None:
    touch(tmp_path, "set2/2.jpg", "set/1.jpg")
    (tmp_path / "set" / "sub").symlink_to(tmp_path / "set2")
    assert "sub/2.jpg" in error(annotate(tmp_path / "set" / "all.json", "1.jpg", "sub/2.jpg"))


def test_links_within_the_folder_and_a_linked_image_folder_are_fine(tmp_path: Path) -> None:
    touch(tmp_path, "disk/1.jpg", "coco/annotations/x")
    (tmp_path / "coco" / "train2017").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "2.jpg").symlink_to(tmp_path / "disk" / "1.jpg")
    source = annotate(tmp_path / "coco" / "annotations" / "captions_train2017.json", "1.jpg", "2.jpg")
    assert find_images(source).names == ["1.jpg", "2.jpg"]


# Broken annotations


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"file_name": "1.jpg"}]} and more',
        '{"images": [{"file_name": "1.jpg"}], "annotations": [{"id": 1}',
        "[" * 100_000,
        "\xff\xfe{\x00}\x00",
        "", "{", '{"images": [{"file_name": "1.jpg"}', "no JSON", '{"a": 1, }', "\xff",
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [1 << 20, 0])
def test_unreadable_json(tmp_path: Path, text: str, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file is so large that not all of it is decoded."""
    monkeypatch.setattr("innervision.data.sources.WHOLE", whole)
    (tmp_path / "all.json").write_text(text, encoding="latin-1")
    assert "all.json is" in (message := error(tmp_path / "all.json"))
    assert "not valid JSON" in message or "nested too deeply" in message


@pytest.mark.parametrize(
    "content",
    [
        [],
        3,
        {},
        {"a": 1},
        {"images": {}},
        {"images": [1]},
        {"images": [{"id": 1}]},
        {"images": [{"file_name": ""}]},
    ],
)
def test_json_that_is_not_coco(tmp_path: Path, content: object) -> None:
    (tmp_path / "all.json").write_text(json.dumps(content))
    assert "is not a COCO annotation file" in error(tmp_path / "all.json")


def test_annotations_without_images(tmp_path: Path) -> None:
    assert "no images in" in error(annotate(tmp_path / "all.json"))


# Lists


def test_list_keeps_its_order_and_starts_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/b.jpg", "set/sub/a #1.jpg", "other/c.jpg", "other/d.jpg")
    lines = ["# chosen by hand", "sub/a #1.jpg", "", f"{tmp_path}/other/d.jpg", "  b.jpg ", "../other/c.jpg"]
    (tmp_path / "set" / "list.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path / "other")
    images = find_images(tmp_path / "set" / "list.txt")
    assert images.names == ["sub/a #1.jpg", f"{tmp_path.as_posix()}/other/d.jpg", "b.jpg", "../other/c.jpg"]
    assert [path.name for path in images.paths] == ["a #1.jpg", "d.jpg", "b.jpg", "c.jpg"]
    assert all(path.is_file() for path in images.paths)


def test_path_listed_twice_in_other_words_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.jpg\n./a.jpg\nb.jpg\n../{tmp_path.name}/b.jpg\n")
    assert find_images(tmp_path / "list.txt").names == ["a.jpg", "b.jpg"]


def test_listed_file_that_does_not_exist_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("gone/b.jpg\na.jpg\nnul\0.jpg\n")
    images = find_images(tmp_path / "list.txt")
    assert images.names == ["a.jpg"]
    assert [name for name, _ in images.missing] == ["gone/b.jpg", "nul\0.jpg"]
    assert images.missing[0][1] == f"no such file: {tmp_path}/gone/b.jpg"


def test_urls_and_folders_in_a_list_are_named_as_such(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\nhttps://host/c.jpg\nsub\n")
    reasons = [reason.partition(":")[0] for _, reason in find_images(tmp_path / "list.txt").missing]
    assert reasons == ["a URL, to be downloaded first", "a folder"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("all.json", "list.txt"):
        os.mkfifo(tmp_path / name)
        assert "not a regular file" in error(tmp_path / name)


def test_list_of_which_nothing_exists(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    message = error(tmp_path / "list.txt")
    assert "none of the 2 files" in message
    assert str(tmp_path / "a.jpg") in message


def test_empty_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing yet\n\n")
    assert "holds no path" in error(tmp_path / "list.txt")


def test_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0")
    assert "not UTF-8 text" in error(tmp_path / "list.txt")


# One image, and what is none of these


def test_one_image(tmp_path: Path) -> None:
    path = touch(tmp_path, "a.JPG") / "a.JPG"
    assert find_images(path) == ImageSet([path], ["a.JPG"], [])


def test_source_that_does_not_exist(tmp_path: Path) -> None:
    assert error(tmp_path / "gone") == f"no such file or folder: {tmp_path / 'gone'}"


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    assert "cannot tell what" in error(touch(tmp_path, "train2017.zip") / "train2017.zip")


# Real images


@pytest.mark.parametrize(
    ("annotations", "split", "count"),
    [
        ("captions_train2017", "train2017", 50),
        ("panoptic_val2017", "val2017", 2),
        ("captions_val2017", "val2017", 2),
    ],
)
def test_coco_sample_by_annotations_and_by_folder(shared: Path, annotations: str, split: str, count: int) -> None:
    sample = shared / "coco-sample"
    source = sample / "annotations" / f"{annotations}.json"
    images = find_images(source)
    assert len(images) == count
    assert images.missing == []
    assert sorted(images.names) == find_images(sample / split).names == find_images(sample, split).names
    sizes = {
        image["file_name"]: (image["width"], image["height"]) for image in json.loads(source.read_text())["images"]
    }
    for name, path in zip(images.names, images.paths, strict=True):
        assert read_image(path).size == sizes[name]
