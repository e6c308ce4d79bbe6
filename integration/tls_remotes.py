"""Mail servers with good and bad TLS, and policy hosts; run where a remote is.

``python tls_remotes.py CONFIG``: JSON with a list of servers, each with an address, a
certificate file and what is wrong with it, and policies by host name. Writes what came
to a folder: a file for each message, whose first line says whether it came over TLS.
Ends with its input.
"""

import json
import socket
import ssl
import sys
import threading
from pathlib import Path

CONFIG = json.loads(Path(sys.argv[1]).read_text())
FOLDER = Path(CONFIG["folder"])


def context_of(file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def serve(address, port, talk):
    listener = socket.create_server((address, port))

    def accept():
        while True:
            client, _ = listener.accept()
            threading.Thread(target=guarded, args=(talk, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def guarded(talk, client):
    try:
        client.settimeout(60)
        talk(client)
    except OSError:
        pass
    finally:
        client.close()


def smtp(server):
    def talk(client):
        peer = client.getpeername()[0]
        secure, data = False, 0
        body: list[bytes] = []
        client.sendall(b"220 remote ESMTP\r\n")
        file = client.makefile("rb")
        while line := file.readline():
            if data:
                if line == b".\r\n":
                    name = f"{server['name']}.{data}"
                    how = f"{'tls' if secure else 'plain'} {peer}\n".encode()
                    (FOLDER / name).write_bytes(how + b"".join(body))
                    data, body = 0, []
                    client.sendall(b"250 taken\r\n")
                else:
                    body.append(line)
                continue
            verb = line[:4].upper()
            if verb == b"EHLO":
                offer = server["offer"] and not secure
                client.sendall(
                    b"250-remote\r\n250 STARTTLS\r\n" if offer else b"250 remote\r\n"
                )
            elif verb == b"STAR":
                client.sendall(b"220 go\r\n")
                if server["broken"]:
                    client.recv(100)
                    client.sendall(b"-ERR what is this\r\n")
                    return
                client = context_of(server["certificate"]).wrap_socket(
                    client, server_side=True
                )
                file, secure = client.makefile("rb"), True
            elif verb == b"DATA":
                data = threading.get_ident()
                client.sendall(b"354 go\r\n")
            elif verb == b"QUIT":
                client.sendall(b"221 bye\r\n")
                return
            else:
                client.sendall(b"250 ok\r\n")

    return talk


def policies(client):
    with (FOLDER.parent / "fetchers").open("a") as record:
        record.write(client.getpeername()[0] + "\n")
    client = context_of(CONFIG["policy_certificate"]).wrap_socket(
        client, server_side=True
    )
    asked = client.recv(10000).decode()
    host = asked.partition("Host: ")[2].partition("\r\n")[0]
    text = CONFIG["policies"].get(host, "")
    status = "200 OK" if text else "404 Not Found"
    client.sendall(
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
    )
    client.recv(100)


for each in CONFIG["servers"]:
    serve(each["address"], 25, smtp(each))
serve(CONFIG["policy_address"], 443, policies)
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.read()
