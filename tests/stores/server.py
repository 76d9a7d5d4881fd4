"""A small object store on loopback, which speaks the XML interfaces of S3 and of Google Cloud Storage, with faults.

It is a second implementation beside moto's. It checks no signatures.
"""

import hashlib
import http.server
import re
import socket
import threading
import time
import urllib.parse
import xml.sax.saxutils
from email.utils import formatdate

ESCAPE = xml.sax.saxutils.escape


class Object:
    def __init__(self, content, generation):
        self.content = content
        self.etag = f'"{hashlib.md5(content).hexdigest()}-{generation}"'
        self.generation = generation
        self.modified = time.time()


class StoreServer(http.server.ThreadingHTTPServer):
    """Attributes: `objects` by (bucket, key); `requests`, a list of (method, key, size of the body)."""

    daemon_threads = True

    def __init__(self):
        self.objects, self.uploads = {}, {}
        self.requests = []
        self.generation = 0
        self.guard = threading.Lock()
        self.faults = []
        self.left = None  # requests until the store refuses everything
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def fail(self, kind, *, times=1, method=None, key=""):
        """Let the next requests fail: drop, truncate, 500, 503, 403 or slow."""
        self.faults += [(kind, method, key)] * times

    def next_fault(self, method, key):
        with self.guard:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    return "403"
            for i, (kind, wanted, part) in enumerate(self.faults):
                if wanted in (None, method) and part in key:
                    del self.faults[i]
                    return kind
        return None

    def put(self, place, content):
        self.generation += 1
        self.objects[place] = Object(content, self.generation)
        return self.objects[place]

    def keys(self, bucket="bucket"):
        return sorted(key for each, key in self.objects if each == bucket)

    def handle_error(self, request, client_address):
        pass  # a client that has gone away


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *arguments):
        pass

    def answer(self, code, body=b"", headers=None, *, truncate=False):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncate else body)
        if truncate:
            self.drop()

    def drop(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def error(self, code, name):
        body = f"<Error><Code>{name}</Code><Message>{name}</Message></Error>".encode()
        self.answer(code, body, {"Content-Type": "application/xml"})

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        bucket, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store = self.server
        with store.guard:
            store.requests.append((self.command, key, len(body)))
        fault = store.next_fault(self.command, key)
        if fault == "drop":
            return self.drop()
        if fault == "slow":
            time.sleep(1.0)
        if fault in ("500", "503", "403"):
            names = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
            return self.error(int(fault), names[fault])
        with store.guard:
            method = getattr(self, f"{self.command.lower()}_object")
            return method(bucket, key, query, body, truncate=fault == "truncate")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_one

    def metadata(self, found):
        return {
            "ETag": found.etag,
            "Last-Modified": formatdate(found.modified, usegmt=True),
            "x-goog-generation": str(found.generation),
        }

    def get_object(self, bucket, key, query, body, *, truncate):
        if not key:
            return self.list_objects(bucket, query)
        found = self.server.objects.get((bucket, key))
        if found is None:
            return self.error(404, "NoSuchKey")
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted != found.etag:
            return self.error(412, "PreconditionFailed")
        headers = self.metadata(found)
        content = found.content
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            return self.answer(200, content, headers, truncate=truncate)
        begin, end = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        return self.answer(206, content[begin : end + 1], headers, truncate=truncate)

    def head_object(self, bucket, key, query, body, *, truncate):
        found = self.server.objects.get((bucket, key))
        if found is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        for name, value in {**self.metadata(found), "Content-Length": str(len(found.content))}.items():
            self.send_header(name, value)
        return self.end_headers()

    def put_object(self, bucket, key, query, body, *, truncate):
        store, place = self.server, (bucket, key)
        if "partNumber" in query:
            store.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return self.answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        source = self.headers.get("x-amz-copy-source") or self.headers.get("x-goog-copy-source")
        if source:
            origin = tuple(urllib.parse.unquote(source).lstrip("/").split("/", 1))
            if origin not in store.objects:
                return self.error(404, "NoSuchKey")
            found = store.put(place, store.objects[origin].content)
            text = f"<CopyObjectResult><ETag>{ESCAPE(found.etag)}</ETag></CopyObjectResult>"
            return self.answer(200, text.encode(), self.metadata(found))
        found = store.objects.get(place)
        generation = self.headers.get("x-goog-if-generation-match")
        if generation is not None and int(generation) != (found.generation if found else 0):
            return self.error(412, "PreconditionFailed")
        if self.headers.get("If-None-Match") == "*" and found is not None:
            return self.error(412, "PreconditionFailed")
        wanted = self.headers.get("If-Match")
        if wanted is not None and (found is None or found.etag != wanted):
            return self.error(412 if found else 404, "PreconditionFailed" if found else "NoSuchKey")
        return self.answer(200, headers=self.metadata(store.put(place, body)))

    def post_object(self, bucket, key, query, body, *, truncate):
        store = self.server
        if "uploads" in query:
            number = f"upload-{len(store.uploads)}"
            store.uploads[number] = {}
            text = f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{ESCAPE(key)}</Key>"
            text += f"<UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            return self.answer(200, text.encode())
        if "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for each in keys:
                store.objects.pop((bucket, xml.sax.saxutils.unescape(each)), None)
            deleted = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
            return self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        parts = store.uploads.pop(query["uploadId"])
        found = store.put((bucket, key), b"".join(parts[number] for number in sorted(parts)))
        text = f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{ESCAPE(key)}</Key>"
        text += f"<ETag>{ESCAPE(found.etag)}</ETag></CompleteMultipartUploadResult>"
        return self.answer(200, text.encode(), {"x-goog-generation": str(found.generation)})

    def delete_object(self, bucket, key, query, body, *, truncate):
        if self.server.objects.pop((bucket, key), None) is None and "uploadId" not in query:
            return self.error(404, "NoSuchKey")
        return self.answer(204)

    def list_objects(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, most = query.get("continuation-token") or query.get("start-after", ""), int(query.get("max-keys", 1000))
        contents, prefixes = [], []
        keys = [key for key in self.server.keys(bucket) if key.startswith(prefix) and key > start]
        for key in keys[:most]:
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.append(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            found = self.server.objects[bucket, key]
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified))
            contents.append(
                f"<Contents><Key>{ESCAPE(key)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>{ESCAPE(found.etag)}</ETag><Size>{len(found.content)}</Size></Contents>"
            )
        text = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>{str(len(keys) > most).lower()}</IsTruncated>"
        if len(keys) > most:
            text += f"<NextContinuationToken>{ESCAPE(keys[most - 1])}</NextContinuationToken>"
        text += "".join(contents)
        text += "".join(
            f"<CommonPrefixes><Prefix>{ESCAPE(each)}</Prefix></CommonPrefixes>" for each in sorted(set(prefixes))
        )
        return self.answer(200, f"{text}</ListBucketResult>".encode(), {"Content-Type": "application/xml"})
