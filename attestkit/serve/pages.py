"""What a browser sees on the external listener: one page that says who the app is."""

from html import escape

from attestkit.errors import AttestKitError, BackendError
from attestkit.serve.guest import Guest
from attestkit.serve.messages import AppInfo
from attestkit.serve.views import Answer, Asked, View

__all__ = ["VIEWS"]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Worker Information</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem }}
th {{ padding-right: 1.5rem; text-align: left; vertical-align: top; white-space: nowrap }}
td {{ font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
.warning {{ background: #fde8c8; padding: .5rem 1rem }}
textarea {{ box-sizing: border-box; font-family: ui-monospace, monospace; width: 100% }}
</style>
</head>
<body>
<h1>Node Information</h1>
{notice}<table>
{rows}
</table>
<h2>Links</h2>
<ul>
<li><a href="/prpc/Worker.Info">Information as JSON</a></li>
<li><a href="/prpc/Worker.Version">Version</a></li>
</ul>
<h2>TCB Info</h2>
{tcb_info}
</body>
</html>
"""
_SIMULATED = """<p class="warning">This TEE is simulated: its quotes prove nothing.</p>
"""


async def _dashboard(guest: Guest, _: Asked) -> Answer:
    hidden = not guest.app_compose.public_tcbinfo
    try:
        info = (await guest.on_device(lambda: guest.info(hidden=hidden))).message
    except AttestKitError as error:
        raise BackendError(f"Failed to get worker info: {error}") from error
    assert isinstance(info, AppInfo)
    tcb_info = "<p>TCB info is not public</p>"
    if guest.app_compose.public_tcbinfo:
        tcb_info = f'<textarea readonly rows="24">\n{escape(info.tcb_info)}</textarea>'
    page = _PAGE.format(
        notice=_SIMULATED if guest.attester.simulated else "",
        rows="\n".join(
            f"<tr><th>{label}</th><td>{escape(value)}</td></tr>" for label, value in _rows(info)
        ),
        tcb_info=tcb_info,
    )
    return Answer(b"text/html; charset=utf-8", page.encode("utf-8"))


def _rows(info: AppInfo) -> list[tuple[str, str]]:
    rows = [
        ("App Name", info.app_name),
        ("App ID", info.app_id.hex()),
        ("Instance ID", info.instance_id.hex()),
        ("Device ID", info.device_id.hex()),
        ("Key Provider Info", info.key_provider_info),
    ]
    if info.cloud_vendor or info.cloud_product:
        rows.append(("Machine Provider", f"{info.cloud_vendor} ({info.cloud_product})"))
    return rows


VIEWS = {"/": View(_dashboard)}
"""The views by path; `/metrics` is not served yet, which is a 404."""
