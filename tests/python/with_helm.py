"""Asks Helm's own library, as it is in helm-python-sdk, for one thing; tells what came of it as JSON."""

import json
import os
import sys

import helm_python

# As the command has it; by itself the library keeps logins elsewhere for each verb.
LOGINS = os.path.expanduser("~/.config/helm/registry/config.json")


def client():
    return helm_python.RegistryClient(credentials_file=LOGINS)


def package(name, version, folder, *dependency):
    """Makes a chart as `helm create` does, and packs it with its dependency: name, version and where from."""
    os.makedirs(folder, exist_ok=True)
    helm_python.Chart.create(name, folder)
    chart = os.path.join(folder, name)
    if dependency:
        with open(os.path.join(chart, "Chart.yaml"), "a") as file:
            wanted = dict(zip(("name", "version", "repository"), dependency))
            file.write("dependencies: " + json.dumps([wanted]) + "\n")
        helm_python.dependency_update(chart)
    return helm_python.package(chart, destination=folder, version=version)


def login(host, user, password):
    os.makedirs(os.path.dirname(LOGINS), exist_ok=True)
    client().login(host, user, password)


def logout(host):
    client().logout(host)


def push(archive, remote):
    return client().push(archive, remote)


def pull(reference, version, folder):
    os.makedirs(folder, exist_ok=True)
    return client().pull(reference, version=version, destination=folder)


def tags(reference):
    return client().tags(reference)


def resolve(reference):
    return client().resolve(reference)


def show(reference):
    return client().show(reference, output_format="chart")


verbs = (package, login, logout, push, pull, tags, resolve, show)
verbs = {verb.__name__: verb for verb in verbs}
print(json.dumps(verbs[sys.argv[1]](*sys.argv[2:])))
