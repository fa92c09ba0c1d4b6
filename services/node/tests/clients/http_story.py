"""One story with the generated OpenAPI client: template, users, notify, status, inbox. Usage: http_story.py ADDRESS DIR"""

import sys
import time

address, directory = sys.argv[1], sys.argv[2]
sys.path.insert(0, directory)

from herald_http import AuthenticatedClient
from herald_http.api.inbox import list_inbox, mark_inbox
from herald_http.api.notifications import get_status, notify
from herald_http.api.templates import get_template, preview_template, put_template
from herald_http.api.users import get_user, patch_user, put_user
from herald_http.models import (
    Audience, InAppTemplate, JsonObject, MarkInboxRequest, NotifyRequest, PreviewTemplateRequest, Problem,
    PutTemplateRequest, PutUserRequest, TemplateChannels)


def told(answer):
    assert answer is not None and not isinstance(answer, Problem), answer
    return answer


client = AuthenticatedClient(base_url=f"http://{address}", token="hk_dev_demo", raise_on_unexpected_status=True)

channels = TemplateChannels(in_app=InAppTemplate(title="Hello {{user.attributes.name}}", body="{{data.text}}"))
stored = told(put_template.sync("http-story", client=client, body=PutTemplateRequest(channels=channels)))
assert (stored.version, stored.published) == (1, True), stored
source = told(get_template.sync("http-story", client=client))
assert (source.channels.in_app.body, source.category, source.live_version) == ("{{data.text}}", None, 1), source

attributes = JsonObject.from_dict({"name": "Ben", "age": 7})
told(put_user.sync("http-ben", client=client, body=PutUserRequest(attributes=attributes)))
told(patch_user.sync("http-ben", client=client, body=PutUserRequest(locale="de")))
ben = told(get_user.sync("http-ben", client=client))
assert (ben.attributes.to_dict(), ben.locale, ben.time_zone, ben.version) == ({"name": "Ben", "age": 7}, "de", None, 2), ben

preview = told(preview_template.sync("http-story", client=client, body=PreviewTemplateRequest(
    user_id="http-ben", channel="in_app", data=JsonObject.from_dict({"text": "Nice."}))))
assert preview.parts.to_dict()["title"] == "Hello Ben", preview

request = NotifyRequest(
    template_id="http-story", audience=Audience(users=["http-ben"]), data=JsonObject.from_dict({"text": "Nice.", "n": 1}))
accepted = told(notify.sync(client=client, body=request, idempotency_key="http-story-1"))
again = told(notify.sync(client=client, body=request, idempotency_key="http-story-1"))
assert not accepted.deduplicated and again.deduplicated and again.request_id == accepted.request_id, (accepted, again)

deadline = time.monotonic() + 60
while True:
    status = told(get_status.sync(accepted.request_id, client=client))
    if status.state == "complete" and status.books_balanced:
        break
    assert time.monotonic() < deadline, status
    time.sleep(0.05)
assert (status.instances.accepted, status.instances.delivered, status.recipients.complete) == (1, 1, True), status

inbox = told(list_inbox.sync("http-ben", client=client))
(item,) = inbox.items
assert (item.title, item.body, item.data.to_dict()) == ("Hello Ben", "Nice.", {"text": "Nice.", "n": 1}), item
assert item.seen_at is None and item.read_at is None and item.archived_at is None, item
counts = told(mark_inbox.sync("http-ben", client=client, body=MarkInboxRequest(instance_ids=[item.instance_id], as_="read")))
assert (counts.unseen, counts.unread, counts.total) == (0, 0, 1), counts

refused = notify.sync(client=client, body=NotifyRequest(template_id="nothing", audience=Audience(users=["http-ben"])))
assert isinstance(refused, Problem) and (refused.status, refused.code) == (422, "unknown_template"), refused
