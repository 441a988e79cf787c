"""The console in a real browser: an outage and an old copy are survived before one's eyes."""

import importlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import redis

from .conftest import Console

PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
SCHEMES = ["light", "dark"]
AGREE = ["agrees with the row", "agrees with the row"]
STALE = ["does not say what the row says", "agrees with the row"]


def _store(console: Console) -> redis.Redis:
    return redis.Redis(unix_socket_path=f"{console.example.folder / 'instance' / 'valkey.sock'}")


def _picture(console: Console, folder: Path, name: str) -> None:
    """Keep a picture of the page, of few colours: so it is small."""
    from PIL import Image

    shot = Image.open(io.BytesIO(console.page.screenshot(full_page=True))).convert("RGB")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    shot.quantize(200, dither=Image.Dither.NONE).save(file, optimize=True)
    assert file.stat().st_size < 150_000


def test_without_a_key_the_page_names_the_demo_clients_and_does_nothing(console: Console) -> None:
    for number in (1, 2, 3):
        assert f"Demo client {number}" in console.row(f"demo-{number}").text_content()
    buttons = console.page.locator("main button").all()
    assert [button.text_content().strip() for button in buttons if button.is_enabled()] == [
        "Use the key",
        "Put the key away",
    ]
    assert not console.button("Put the key away").is_visible()
    assert not any("/console/" in url for url in console.urls)


@pytest.mark.parametrize("console", [{"color_scheme": scheme} for scheme in SCHEMES], indirect=True)
def test_an_outage_is_survived(
    console: Console, pictures: Path | None, request: pytest.FixtureRequest
) -> None:
    console.provoked = {503}
    console.enter()
    assert console.verdicts("demo-1") == AGREE
    console.press("Unplug", "its process has been killed")
    with pytest.raises(redis.ConnectionError):
        _store(console).ping()
    console.press("Soft delete demo-1", "The row is inactive, the record is pending")
    assert "503" in console.page.locator("#said").text_content()
    assert "inactive" in console.row("demo-1").text_content()
    assert "last seen" in console.row("demo-1").text_content()
    assert "pending" in console.page.locator("#ledger").text_content()
    if pictures is not None:
        scheme = console.page.evaluate(
            "matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'"
        )
        _picture(console, pictures, f"console-{scheme}")
    console.press("Unplug", "is back, on all that it had confirmed")
    assert console.verdicts("demo-1") == STALE
    console.press("Soft delete again demo-1", "Soft-deleted.")
    assert console.verdicts("demo-1") == AGREE
    assert "1 pending" not in console.page.locator("main").text_content()
    console.press("Restore demo-1", "Restored.")
    assert console.example.get("demo-1").json()["status"] is True


def test_what_a_hard_delete_left_reconcile_finishes(console: Console) -> None:
    console.provoked = {503}
    console.enter()
    console.press("Unplug", "killed")
    console.button("Hard delete… demo-2").click()
    dialog = console.page.get_by_role("dialog")
    yes = dialog.get_by_role("button", name="Hard delete")
    dialog.get_by_label("Type demo-2").fill("demo-")
    assert yes.is_disabled()
    dialog.get_by_label("Type demo-2").fill("demo-2")
    yes.click()
    console.told("The row is gone, the record is pending")
    console.press("Reconcile", "What is pending stays pending")
    console.press("Unplug", "is back")
    assert console.verdicts("demo-2") == ["left over: the row does not want it"] * 2
    assert _store(console).exists("client:demo-2", "publishable_key:pk_demo_2") == 2
    console.press("Reconcile", "Settled 1, verified 0, failed 0. 2 entries repaired.")
    assert console.verdicts("demo-2") == ["not there", "not there"]
    assert _store(console).exists("client:demo-2", "publishable_key:pk_demo_2") == 0
    assert console.button("Hard delete… demo-2").is_disabled()


def test_a_store_that_forgets_is_found_out(console: Console) -> None:
    console.provoked = {503}
    console.enter()
    console.press("Forget", "Nothing that you see has changed since")
    console.press("Soft delete demo-1", "Soft-deleted.")
    console.press(
        "Reconcile", "0 entries repaired"
    )  # from now on the store has a mark, and the copy has none
    console.press("Forget", "What was confirmed since is lost")
    assert console.verdicts("demo-1") == STALE
    assert "nothing pending" in console.page.locator("main").text_content()
    assert json.loads(_store(console).get("client:demo-1"))["status"] is True
    console.press("Reconcile", "Settled 0, verified 0, failed 0. 1 entry repaired.")
    assert console.verdicts("demo-1") == AGREE
    assert json.loads(_store(console).get("client:demo-1"))["status"] is False
    # While it is unplugged, too.
    console.press("Unplug", "killed")
    console.press("Soft delete demo-3", "the record is pending")
    console.press("Forget", "What was confirmed since is lost")
    console.press("Reconcile", "Settled 1, verified 0, failed 0. 2 entries repaired.")


def test_the_steps_to_try_are_ticked_off(console: Console) -> None:
    console.provoked = {503}
    console.enter()
    for number, (name, words) in enumerate(
        [
            ("Unplug", "killed"),
            ("Soft delete demo-1", "pending"),
            ("Unplug", "is back"),
            ("Reconcile", "Settled 1"),
            ("Forget", "is back"),
            ("Reconcile", "1 entry repaired"),
        ],
        1,
    ):
        console.press(name, words)
        assert console.page.locator(".try .done").count() == number


def test_the_keyboard_alone_will_do(console: Console) -> None:
    console.provoked = {503}
    keyboard = console.page.keyboard

    def focused() -> str:
        return str(
            console.page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id")
        )

    keyboard.press("Tab")
    assert focused() == "key"
    keyboard.type(console.example.key)
    keyboard.press("Enter")
    console.page.get_by_text("accepted").wait_for()
    assert focused() == "Unplug the key-value store"
    keyboard.press("Space")
    console.told("killed")
    tabs = []
    for _ in range(5):
        keyboard.press("Tab")
        tabs.append(focused())
        outline = console.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    assert tabs[1:] == ["Reconcile", "Soft delete acme", "Restore acme", "Hard delete… acme"]
    keyboard.press("Enter")
    assert focused() == "sure-id"
    keyboard.press("Escape")
    assert focused() == "Hard delete… acme"
    keyboard.press("Enter")
    keyboard.type("acme")
    keyboard.press("Enter")
    console.told("The row is gone, the record is pending")
    assert focused() == "Hard delete again… acme"
    console.press("Unplug", "is back")
    console.button("Hard delete again… acme").focus()
    keyboard.press("Enter")
    keyboard.type("acme")
    keyboard.press("Enter")
    console.told("Gone for good")
    assert focused() == "Answers of the server"  # its button is off now: the focus is not lost


def test_a_wrong_key_opens_nothing(console: Console) -> None:
    console.provoked = {401}
    for wrong in ("mythic_wrong", "Schlüssel", " "):
        console.enter(wrong)
        console.page.get_by_text("This is no key of this server.").wait_for()
        assert console.page.get_by_label("The key that").get_attribute("aria-invalid") == "true"
        assert console.button("Soft delete demo-1").is_disabled()
    console.enter()
    assert console.button("Soft delete demo-1").is_enabled()


def test_the_key_is_kept_in_memory_alone(console: Console) -> None:
    console.enter()
    console.press("Soft delete demo-1", "Soft-deleted.")
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    assert console.example.key not in console.page.evaluate(kept)
    assert console.example.key not in console.page.content()
    assert console.page.locator("#key").input_value() == ""
    console.button("Put the key away").click()
    console.page.get_by_text("not asked yet").first.wait_for()
    assert console.button("Soft delete demo-1").is_disabled()


def test_what_others_do_is_seen_and_only_while_the_tab_is(console: Console) -> None:
    console.enter()
    assert console.example.delete("demo-3").status_code == 200
    console.row("demo-3").get_by_text("inactive").wait_for()
    console.page.evaluate(
        """Object.defineProperty(document, "visibilityState", { get: () => "hidden", configurable: true });
        document.dispatchEvent(new Event("visibilitychange"))"""
    )
    console.page.wait_for_timeout(200)  # for what was asked before
    asked = len(console.urls)
    console.page.wait_for_timeout(1200)
    assert len(console.urls) == asked
    console.page.evaluate(
        "delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange'))"
    )
    with console.page.expect_request("**/console/state"):
        pass


def test_a_slow_answer_that_is_overtaken_is_told_rightly(console: Console) -> None:
    console.provoked = {503}
    console.enter()
    console.press("Unplug", "killed")
    console.page.evaluate(
        """() => {
            const quick = fetch;
            fetch = async (path, options) => {
                if (path.endsWith("/state")) await new Promise(resolve => setTimeout(resolve, 1500));
                return quick(path, options);
            };
        }"""
    )
    with console.page.expect_response("**/console/state"):  # the next is asked for in a second: in the middle
        pass
    console.press("Soft delete demo-1", "The row is inactive, the record is pending")


def test_what_clients_are_called_is_text(console: Console) -> None:
    name = "<img src=x onerror=alert(1)>"
    with sqlite3.connect(console.example.folder / "instance" / "clients.db") as database:
        row = ("evil", name, True, "<b>")
        database.execute("INSERT INTO clients (id, name, status, publishable_key) VALUES (?, ?, ?, ?)", row)
    database.close()
    console.enter()
    assert console.row("evil").locator(".name").text_content() == name
    assert "publishable_key:<b>" in console.row("evil").locator(".entries").text_content()
    console.press("Soft delete evil", "Soft-deleted.")
    assert console.page.locator("main img").count() == 0


@pytest.mark.parametrize("console", [PHONE], indirect=True)
def test_a_phone_shows_all_without_scrolling_sideways(console: Console) -> None:
    console.provoked = {503}
    assert console.overflow() == 0
    console.enter()
    console.press("Unplug", "killed")
    console.press("Soft delete demo-1", "pending")
    assert console.overflow() == 0
    console.button("Hard delete… demo-2").tap()
    box = console.page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 320
    console.page.get_by_role("button", name="Cancel").tap()
    sizes = [button.bounding_box() for button in console.page.locator("main button:visible").all()]
    assert min(size["height"] for size in sizes) >= 24


# The policy has to let axe in, a script of another's. Colours go with the scheme, places with the screen.
@pytest.mark.parametrize(
    "console",
    [
        {"bypass_csp": True, "color_scheme": scheme, **screen}
        for scheme, screen in zip(SCHEMES, ({}, PHONE), strict=True)
    ],
    indirect=True,
)
def test_axe_finds_nothing(console: Console) -> None:
    console.provoked = {503}
    axe: Any = importlib.import_module("axe_playwright_python.sync_playwright").Axe()

    def check() -> None:
        found = axe.run(console.page)
        assert found.violations_count == 0, found.generate_report()

    check()
    console.enter()
    check()
    console.press("Unplug", "killed")
    console.press("Soft delete demo-1", "pending")
    check()
    console.press("Unplug", "is back")
    check()
    console.button("Hard delete… demo-1").click()
    check()
