"""The cookies of one download: they return to the domain that set them, as in a browser.

Links to files of SharePoint and other hosts redirect with a cookie that the next request must
bring. Knows no connections.
"""

from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx


def new_cookies() -> httpx.Cookies:
    """Where the cookies of a download are kept.

    A cookie returns to the host that set it. Where it names a parent domain, it also returns to
    that domain's other hosts, unless the domain is a registry's, such as co.uk.
    """
    policy = DefaultCookiePolicy(
        strict_domain=True, strict_ns_domain=DefaultCookiePolicy.DomainStrict
    )
    return httpx.Cookies(CookieJar(policy))


def add_cookies(request: httpx.Request, cookies: httpx.Cookies) -> None:
    """Add those of `cookies` that are for the URL of `request`.

    They replace cookies of the same names in the client's own headers.
    """
    bare = httpx.Request("GET", request.url)
    with suppress(UnicodeEncodeError):  # HTTP does not allow these letters.
        cookies.set_cookie_header(bare)
    added = bare.headers.get("Cookie")
    if not added:
        return
    names = {pair.partition("=")[0] for pair in added.split("; ")}
    given = request.headers.get("Cookie", "").split("; ")
    kept = [pair for pair in given if pair and pair.partition("=")[0] not in names]
    request.headers["Cookie"] = "; ".join([*kept, added])
