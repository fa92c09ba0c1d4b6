"""A mail server that is not Herald's: aiosmtpd, with Python's own message parser.

Usage: aiosmtpd_peer.py [CERTIFICATE KEY]

Prints its port on the first line, then one JSON object for each message it takes. Recipients whose local part is
"unknown" are refused. With a certificate, STARTTLS and AUTH (user "ann", password "s3cret") are required. Ends when its
standard input does.
"""

import asyncio
import email
import email.policy
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.startswith("unknown@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = {"plain": None, "html": None}
        defects = [repr(defect) for defect in message.defects]
        for part in message.walk():
            defects += [repr(defect) for defect in part.defects]
            if part.get_content_maintype() == "text":
                parts[part.get_content_subtype()] = part.get_content().replace("\r\n", "\n")
        seen = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "mail_options": envelope.mail_options,
            "authenticated": bool(session.authenticated),
            "tls": session.ssl is not None,
            "headers": {name.lower(): str(value) for name, value in message.items()},
            "text": parts["plain"],
            "html": parts["html"],
            "defects": defects,
        }
        print(json.dumps(seen), flush=True)
        return "250 2.0.0 taken"


def authenticate(server, session, envelope, mechanism, auth_data):
    right = auth_data.login == b"ann" and auth_data.password == b"s3cret"
    return AuthResult(success=right, handled=False)


async def main():
    options = {"enable_SMTPUTF8": True, "hostname": "peer.example"}
    if len(sys.argv) == 3:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
        options |= {
            "tls_context": context,
            "require_starttls": True,
            "authenticator": authenticate,
            "auth_required": True,
        }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler(), **options), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
