"""uvicorn's hello world: FOLDER PORT."""

import sys

import uvicorn

BODY = b"Hello, world!"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False, lifespan="off", ws="none")
