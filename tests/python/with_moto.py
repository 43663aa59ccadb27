"""Sets up what moto simulates, by AWS's own client for Python, and tells what is there, as JSON."""

import json
import sys
import urllib.request

import boto3

ENDPOINT = sys.argv[1]
KEYS = ("anything", "anything")


def client(service, account=None):
    """For one's own account, or for another, which moto lets anybody into until it asks for rights."""
    keys, session = KEYS, None
    if account:
        role = f"arn:aws:iam::{account}:role/setup"
        sts = client("sts")
        given = sts.assume_role(RoleArn=role, RoleSessionName="setup")["Credentials"]
        keys = (given["AccessKeyId"], given["SecretAccessKey"])
        session = given["SessionToken"]
    return boto3.client(
        service,
        endpoint_url=ENDPOINT,
        region_name="eu-west-1",
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        aws_session_token=session,
    )


def user(policy):
    """A user who may do what the policy says, and their keys."""
    iam = client("iam")
    iam.create_user(UserName="proxy")
    iam.put_user_policy(UserName="proxy", PolicyName="may", PolicyDocument=policy)
    return iam.create_access_key(UserName="proxy")["AccessKey"]


def role(account, policy, trust):
    """A role of an account that may do what the policy says."""
    iam = client("iam", account)
    made = iam.create_role(RoleName="pull", AssumeRolePolicyDocument=trust)
    iam.put_role_policy(RoleName="pull", PolicyName="may", PolicyDocument=policy)
    return made["Role"]["Arn"]


def enforce(actions):
    """From now on signatures and rights count; or after so many requests more."""
    url = f"{ENDPOINT}/moto-api/reset-auth"
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(url, actions.encode(), plain, method="POST")
    return json.load(urllib.request.urlopen(request))


def repository(name):
    """All there is to know of one."""
    ecr = client("ecr")
    found = ecr.describe_repositories(repositoryNames=[name])["repositories"][0]
    found["tags"] = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
    policy = ecr.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"]
    found["lifecycle"] = json.loads(policy)
    return found


verbs = {verb.__name__: verb for verb in (user, role, enforce, repository)}
print(json.dumps(verbs[sys.argv[2]](*sys.argv[3:]), default=str))
