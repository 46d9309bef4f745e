"""A browser window that notices what a page may not do: complain, ask, run what it was not given, or call anybody else."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, Response

PHONE, SMALL, DESKTOP = (375, 667), (320, 568), (1280, 800)
SCHEMES = ("light", "dark")
BOUND_MS = 20_000

# Sees every rendered text: its contrast with what is behind it (WCAG 2.2 §1.4.3), as [ratio, text] for each.
_CONTRASTS = """() => {
    const channels = text => {
        const parts = text.match(/[\\d.]+/g).map(Number);
        if (text.startsWith('color(srgb')) { for (let i = 0; i < 3; i++) parts[i] *= 255; }
        return [parts[0], parts[1], parts[2], parts.length > 3 ? parts[3] : 1];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = colour => {
        const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };

    const canvas = document.createElement('div');
    canvas.style.setProperty('color', 'canvas');
    document.body.append(canvas);
    const ground = channels(getComputedStyle(canvas).color);
    canvas.remove();
    const behind = element => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((below, layer) => over(layer, below), ground);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const said = walker.currentNode.textContent.trim();
        const element = walker.currentNode.parentElement;
        if (!said || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        if (element.closest('style, script, title, desc, noscript')) continue;
        const style = getComputedStyle(element);
        if (style.clipPath !== 'none') continue;
        const ink = element.closest('svg') ? style.fill : style.color;
        if (!/^(rgb|color\\(srgb)/.test(ink)) continue;
        const ground = behind(element);
        const [a, b] = [light(over(channels(ink), ground)), light(ground)].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), said.slice(0, 60)]);
    }
    return found;
}"""

# Texts that are drawn smaller than anybody reads, as [size in CSS pixels, text].
_TINY = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const said = walker.currentNode.textContent.trim();
        const element = walker.currentNode.parentElement;
        if (!said || element.closest('style, script, title, desc, noscript') || !element.checkVisibility()) continue;
        const drawn = element.ownerSVGElement ? element.getScreenCTM().a : 1;
        const size = parseFloat(getComputedStyle(element).fontSize) * drawn;
        if (size < 8.5) found.push([size, said.slice(0, 40)]);
    }
    return found;
}"""

# What is wider than the window, as descriptions; what scrolls within itself may be.
_OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth;
    const found = document.documentElement.scrollWidth > width ? ['the page itself'] : [];
    for (const element of document.body.querySelectorAll('*')) {
        const box = element.getBoundingClientRect();
        if (!box.width || box.bottom + scrollY <= 0 || box.right <= 0 || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        if (style.clipPath !== 'none') continue;
        let inside = false;
        for (let at = element.parentElement; at && at !== document.body; at = at.parentElement) {
            if (getComputedStyle(at).overflowX !== 'visible') inside = true;
        }
        if (!inside && (box.right > width + 1 || box.left < -1)) found.push(element.outerHTML.slice(0, 120));
        if (style.overflowX === 'hidden' && style.textOverflow !== 'ellipsis' && element.scrollWidth > element.clientWidth + 1)
            found.push('cut: ' + element.outerHTML.slice(0, 120));
    }
    return found;
}"""

# Everything that a finger has to hit, as [width, height, description]; links within a text are as high as their line.
_TARGETS = """() => [...document.querySelectorAll('button, summary, select, a, input:not([type=hidden])')]
    .filter(element => element.checkVisibility() && !(element.matches('p a, dd a, td a, li p a')))
    .map(element => {
        let shown = element;
        if (element.matches('input[type=checkbox], input[type=radio]')) shown = element.closest('label') || element;
        const box = shown.getBoundingClientRect();
        const away = box.bottom + scrollY <= 0 || box.right <= 0;  // until it has the focus
        return [away ? 99 : box.width, away ? 99 : box.height, element.outerHTML.slice(0, 100)];
    })"""

# What nobody could find by ear: fields and buttons without a name, a page without a language, headings out of order.
_UNNAMED = """() => {
    const found = [];
    if (!document.documentElement.lang) found.push('the page has no language');
    if (!document.title) found.push('the page has no title');
    if (document.querySelectorAll('h1').length !== 1) found.push(document.querySelectorAll('h1').length + ' h1');
    let before = 0;
    for (const heading of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
        const level = Number(heading.tagName[1]);
        if (level > before + 1) found.push('h' + level + ' after h' + before + ': ' + heading.textContent.slice(0, 40));
        before = level;
    }
    for (const field of document.querySelectorAll('input:not([type=hidden]), select, textarea')) {
        if (!field.labels.length && !field.ariaLabel && !field.getAttribute('aria-labelledby')) found.push(field.outerHTML);
    }
    for (const button of document.querySelectorAll('button, a[href], summary')) {
        if (!button.textContent.trim() && !button.ariaLabel) found.push(button.outerHTML.slice(0, 100));
    }
    for (const image of document.querySelectorAll('svg, img')) {
        if (image.closest('[aria-hidden=true]') || image.getAttribute('role') === 'presentation') continue;
        if (!image.querySelector('title') && !image.ariaLabel && !image.getAttribute('aria-labelledby')
            && !image.getAttribute('alt')) found.push('unnamed: ' + image.outerHTML.slice(0, 100));
    }
    const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
    for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push('two elements have the id ' + id);
    return found;
}"""


class Window:
    """One page in a browser of its own. `size` in CSS pixels; `script` says whether it runs JavaScript."""

    def __init__(
        self,
        browser: Browser,
        size: tuple[int, int] = DESKTOP,
        scheme: str = "light",
        *,
        script: bool = True,
        beside: Window | None = None,
    ) -> None:
        self._own = beside is None
        if beside is None:
            self.context = browser.new_context(
                viewport={"width": size[0], "height": size[1]},
                color_scheme=scheme,  # type: ignore[arg-type]
                java_script_enabled=script,
                reduced_motion="no-preference",
                device_scale_factor=2 if size[0] < 600 else 1,
                has_touch=size[0] < 600,
            )
            self.context.set_default_timeout(BOUND_MS)
        else:
            self.context = beside.context
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        """what the console said, scripts that failed, and dialogs"""
        self.requests: list[str] = []
        """every address that anything was asked of, in order"""
        self.documents = 0
        """pages that were loaded"""
        self.answers: list[Response] = []
        self.expected: tuple[str, ...] = ()
        """beginnings of complaints that a test wants"""
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("dialog", self._asked)
        self.page.on("request", self._requested)
        self.page.on("response", lambda answer: self.answers.append(answer))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def _asked(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _requested(self, request: Request) -> None:
        self.requests.append(request.url)
        self.documents += request.resource_type == "document"

    def goes(self, url: str) -> int:
        """Opens an address; gives the status of its answer."""
        answer = self.page.goto(url)
        assert answer is not None
        if answer.status >= 400:
            self._forgive(answer.status)
        return answer.status

    def presses(self, name: str) -> int:
        """Presses the button of that name, which loads a page; gives its status."""
        with self.page.expect_navigation() as waiting:
            self.page.get_by_role("button", name=name, exact=True).click()
        status = waiting.value.status if waiting.value is not None else 0
        if status >= 400:
            self._forgive(status)
        return status

    def _forgive(self, status: int) -> None:
        """A page that says no is a page all the same; the console tells of it as of a fault."""
        self.expected += (f"console: Failed to load resource: the server responded with a status of {status}",)

    @property
    def heading(self) -> str:
        """What the page is about."""
        return self.page.locator("h1").inner_text()

    @property
    def text(self) -> str:
        """All that can be read."""
        return self.page.locator("body").inner_text()

    # --- how it looks

    def shoots(self, place: Path, name: str) -> Path:
        """A screenshot of the whole page, as in a window that is high enough for it."""
        path = place / f"{name}.png"
        size = self.page.viewport_size
        assert size is not None
        height = self.page.evaluate("document.documentElement.scrollHeight")
        self.page.set_viewport_size({"width": size["width"], "height": max(size["height"], min(height, 6000))})
        self.page.screenshot(path=path)
        self.page.set_viewport_size(size)
        return path

    def ugly(self, *, target: int = 24) -> list[str]:
        """What is wrong with how the page looks and sounds. `target` in CSS pixels."""
        evaluate = self.page.evaluate
        found = [f"contrast {ratio:.2f}: {said}" for ratio, said in evaluate(_CONTRASTS) if ratio < 4.5]
        found += [f"tiny, {size:.1f} px: {said}" for size, said in evaluate(_TINY)]
        found += [f"too wide: {what}" for what in evaluate(_OVERFLOWING)]
        found += [f"small, {w:.0f}x{h:.0f}: {what}" for w, h, what in evaluate(_TARGETS) if min(w, h) < target]
        found += [f"unnamed: {what}" for what in evaluate(_UNNAMED)]
        return found

    def checks(self, wrong: dict[str, list[str]]) -> None:
        """Fails with everything that several pages have wrong, the name of each page before it."""
        told = "\n".join(f"{name}: {what}" for name, found in wrong.items() for what in found)
        if told:
            raise AssertionError(f"these pages are not right:\n{told}")

    def focuses(self, steps: int) -> list[str]:
        """What the tab key comes to, each of which shows that it has the focus."""
        found = []
        for _ in range(steps):
            self.page.keyboard.press("Tab")
            name, seen = self.page.evaluate("""() => {
                const at = document.activeElement;
                const style = getComputedStyle(at);
                const seen = (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== 'none';
                return [at === document.body ? '' : (at.textContent.trim() || at.name || at.id || at.tagName), seen];
            }""")
            if not name:
                break
            assert seen, f"`{name}` does not show that it has the focus"
            found.append(name)
        return found

    # --- the end

    def close(self) -> None:
        """Also tells what went wrong while it was open."""
        hosts = {urlsplit(url).netloc for url in self.requests if not url.startswith(("data:", "about:"))}
        if self._own:
            self.context.close()
        wrong = [text for text in self.complaints if not text.startswith(self.expected or ("\0",))]
        assert wrong == []
        assert len(hosts) <= 1, f"the page asked something of {hosts}"
