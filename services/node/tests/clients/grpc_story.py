"""One story with the generated gRPC client: template, users, notify, status, live inbox, erasure. Usage:
grpc_story.py ADDRESS DIR"""

import sys
import time

address, directory = sys.argv[1], sys.argv[2]
sys.path.insert(0, directory)

import grpc
from google.protobuf.json_format import MessageToDict
from herald.v1 import herald_pb2 as v1, herald_pb2_grpc as services

key = (("authorization", "Bearer hk_dev_demo"),)
with grpc.insecure_channel(address) as channel:
    templates, users = services.TemplatesStub(channel), services.UsersStub(channel)
    notifications, inbox = services.NotificationsStub(channel), services.InboxStub(channel)

    source = v1.TemplateChannels(in_app=v1.InAppTemplate(title="Hello {{user.attributes.name}}", body="{{data.text}}"))
    stored = templates.PutTemplate(v1.PutTemplateRequest(template_id="grpc-story", channels=source), metadata=key)
    assert (stored.version, stored.published) == (1, True), stored
    draft = v1.PutTemplateRequest(template_id="grpc-story", channels=source, publish=False)
    assert not templates.PutTemplate(draft, metadata=key).published
    second = v1.TemplateVersionRequest(template_id="grpc-story", version=2)
    assert templates.PublishTemplate(second, metadata=key).version == 2
    back = v1.TemplateVersionRequest(template_id="grpc-story")
    assert templates.RollbackTemplate(back, metadata=key).version == 1

    cara = v1.PutUserRequest(user_id="grpc-cara")
    cara.attributes.update({"name": "Cara"})
    assert users.PutUser(cara, metadata=key).version == 1
    token = users.CreateUserToken(v1.CreateUserTokenRequest(user_id="grpc-cara", scopes=["inbox"]), metadata=key).token
    own = (("authorization", f"Bearer {token}"),)

    live = inbox.WatchInbox(v1.WatchInboxRequest(user_id="grpc-cara"), metadata=own, timeout=60)
    begin = dict(live.initial_metadata())["herald-event-id"]
    requests = []
    for number in (1, 2):
        request = v1.NotifyRequest(template_id="grpc-story", audience=v1.Audience(users=["grpc-cara"]))
        request.data.update({"text": f"number {number}"})
        requests.append(notifications.Notify(request, metadata=key).request_id)
        item = next(live)
        assert (item.title, item.body, item.request_id) == ("Hello Cara", f"number {number}", requests[-1]), item
    live.cancel()
    last = item.event_id

    # Somebody who comes back gets what came since, and nothing twice.
    resumed = v1.WatchInboxRequest(user_id="grpc-cara", last_event_id=begin)
    live = inbox.WatchInbox(resumed, metadata=own, timeout=60)
    assert [next(live).body for _ in range(2)] == ["number 1", "number 2"]
    live.cancel()

    deadline = time.monotonic() + 60
    while True:
        status = notifications.GetStatus(v1.GetStatusRequest(request_id=requests[0]), metadata=key)
        if status.state == "complete" and status.books_balanced:
            break
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert (status.instances.accepted, status.instances.delivered) == (1, 1), status
    feed = inbox.ListInbox(v1.ListInboxRequest(user_id="grpc-cara"), metadata=own)
    assert [item.body for item in feed.items] == ["number 2", "number 1"] and feed.items[0].event_id == last, feed
    assert MessageToDict(feed.items[0].data) == {"text": "number 2"}, feed

    def refused(call, code):
        try:
            call()
        except grpc.RpcError as error:
            assert error.code() == code, error
        else:
            raise AssertionError("it was not refused")

    other = v1.WatchInboxRequest(user_id="grpc-dan")
    refused(lambda: next(inbox.WatchInbox(other, metadata=own, timeout=60)), grpc.StatusCode.PERMISSION_DENIED)
    bad = v1.WatchInboxRequest(user_id="grpc-cara", last_event_id="yesterday")
    refused(lambda: next(inbox.WatchInbox(bad, metadata=own, timeout=60)), grpc.StatusCode.INVALID_ARGUMENT)

    erasure = users.DeleteUser(v1.DeleteUserRequest(user_id="grpc-cara"), metadata=key).erasure_id
    refused(lambda: users.GetUser(v1.GetUserRequest(user_id="grpc-cara"), metadata=key), grpc.StatusCode.NOT_FOUND)
    while users.GetErasure(v1.GetErasureRequest(erasure_id=erasure), metadata=key).state != "complete":
        assert time.monotonic() < deadline, "the erasure does not complete"
        time.sleep(0.05)
    feed = inbox.ListInbox(v1.ListInboxRequest(user_id="grpc-cara"), metadata=key)
    assert not feed.items and feed.counts.total == 0, feed
