"""Asks oras-py, the ORAS project's client in Python, for one thing; tells what came of it as JSON."""

import argparse
import json

import oras.client
import oras.layout
import oras.oci

CLIENT = oras.client.OrasClient(auth_backend="basic")


def container(reference):
    """The reference, with what the user logged in with."""
    parsed = CLIENT.get_container(reference)
    CLIENT.auth.load_configs(parsed)
    return parsed


def url(reference, rest):
    """An address below the repository of the reference."""
    parsed = container(reference)
    return f"{CLIENT.prefix}://{parsed.registry}/v2/{parsed.api_prefix}/{rest}"


def pages(first, key):
    """All pages of a list, one entry each, by the links from one to the next."""
    found = []

    def more(answer):
        entries = answer.json()[key]
        found.append(entries)
        return bool(entries)

    CLIENT._do_paginated_request(first, callable=more)
    return found


def login(words):
    return CLIENT.login(words.user, words.password, hostname=words.host)


def push(words):
    subject = words.subject and oras.oci.Subject(**json.loads(words.subject))
    answer = CLIENT.push(
        words.reference,
        files=words.files,
        manifest_config=words.config,
        manifest_annotations=dict(pair.split("=", 1) for pair in words.annotation),
        subject=subject,
        do_chunked=words.chunk is not None,
        chunk_size=words.chunk or 0,
        disable_path_validation=True,
    )
    sent = answer.request.body
    return {
        "mediaType": answer.request.headers["content-type"],
        "digest": answer.headers["docker-content-digest"],
        "size": len(sent),
    }


def pull(words):
    return CLIENT.pull(words.reference, outdir=words.folder)


def copy(words):
    container(words.source)
    layout = oras.layout.NewLayoutFromRegistry(
        words.folder, CLIENT, words.source, tag="copied"
    )
    container(words.target)
    answer = layout.push_to_registry(CLIENT, words.target, tag="copied")
    return {"digest": answer.headers["docker-content-digest"]}


def manifest(words):
    return CLIENT.get_manifest(container(words.reference))


def referrers(words):
    parsed = container(words.reference)
    answer = CLIENT.do_request(url(words.reference, f"referrers/{parsed.digest}"))
    CLIENT._check_200_response(answer)
    return answer.json()


def tags(words):
    return pages(f"{url(words.reference, 'tags/list')}?n=1", "tags")


def repositories(words):
    host = container(words.reference).registry
    return pages(f"{CLIENT.prefix}://{host}/v2/_catalog?n=1", "repositories")


def delete(words):
    parsed = container(words.reference)
    return CLIENT.delete_tags(parsed, [parsed.tag])


VERBS = {
    login: ["host", "user", "password"],
    push: ["reference"],
    pull: ["reference", "folder"],
    copy: ["source", "target", "folder"],
    manifest: ["reference"],
    referrers: ["reference"],
    tags: ["reference"],
    repositories: ["reference"],
    delete: ["reference"],
}

parser = argparse.ArgumentParser()
verbs = parser.add_subparsers(required=True)
for verb, names in VERBS.items():
    known = verbs.add_parser(verb.__name__)
    known.set_defaults(verb=verb)
    for name in names:
        known.add_argument(name)
    if verb is push:
        known.add_argument("files", nargs="*")
        known.add_argument("--config")
        known.add_argument("--annotation", action="append", default=[])
        known.add_argument("--subject")
        known.add_argument("--chunk", type=int)
words = parser.parse_args()
print(json.dumps(words.verb(words)))
