"""Photos in bulk, a broken one among them."""

from pathlib import Path

from .person import facts, pictures, typed


def test_a_broken_photo_is_named_and_the_others_are_explained() -> None:
    Path("photos").mkdir()
    for number, picture in enumerate(pictures(40)):
        picture.save(f"photos/{number:02d}.png")
    Path("photos/07.png").write_bytes(Path("photos/07.png").read_bytes()[:200])
    said = typed("pellucid explain photos --model shapes-resnet --methods gradcam --raw no -o maps", code=1)
    assert "39 photos explained" in said
    assert "07.png" in said
    run = facts("maps")
    assert [photo["name"] for photo in run["photos"]] == [f"{n:02d}.png" for n in range(40) if n != 7]
    assert len(list(Path("maps/maps").rglob("*.png"))) == 39
    assert not Path("maps/attributions").exists()
    assert Path("maps/predictions.csv").read_text().count("\n") == 40
