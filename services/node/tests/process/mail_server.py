"""A mail server that is not Herald's (aiosmtpd) and asks for a password.

Usage: mail_server.py PASSWORD

Takes mail of the user "herald" with the password, without TLS. Prints its port on the first line, then one line for each
mail: its recipient and its subject. Ends when its standard input does.
"""

import asyncio
import email
import email.policy
import logging
import sys
import warnings

from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        print(envelope.rcpt_tos[0], message["Subject"], flush=True)
        return "250 2.0.0 taken"


def authenticate(server, session, envelope, mechanism, auth_data):
    right = auth_data.login == b"herald" and auth_data.password == sys.argv[1].encode()
    return AuthResult(success=right, handled=False)


async def main():
    options = {"auth_required": True, "auth_require_tls": False, "authenticator": authenticate}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler(), **options), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


# That there is no TLS is what the test is for.
warnings.simplefilter("ignore")
logging.getLogger("mail.log").setLevel(logging.ERROR)
asyncio.run(main())
