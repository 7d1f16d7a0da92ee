"""The story that `make demo` tells, once cluster, images and Kubeformer are there: `python -m examples.demo`.

    mails -> TrainingJob on two nodes -> ModelDeployment -> labels for mails it never saw
    SmolLM2-135M -> ModelDeployment -> a chat answer that streams in

Each step first looks whether it is done already, so a demo that was interrupted anywhere goes on from there when it
is started again. `--again` trains a new model. The cluster is left as it is; the last lines say what to try next.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples import assets, smollm2
from examples.gateway import Gateway, GatewayError
from examples.kubectl import Json, Kubectl, KubectlError, PortForward, condition
from examples.upload import operator_image, targets, upload

HERE = Path(__file__).parent
NAMESPACE = "demo"
SPAM, CHAT = "spam-filter", "smollm2"
QUESTION = "What is Kubernetes good for? Answer in two sentences."
SHOWN_MAILS = 5
TRAIN_SECONDS, SERVE_SECONDS = 3600.0, 900.0
POLL_SECONDS = 2.0


@dataclass
class Story:
    """What happened, for the table at the end."""

    lines: list[tuple[str, str, float]] = field(default_factory=list)
    begin: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """A step of the demo; what is put into the list is its result in the table."""
        print(f"\n== {name}", flush=True)
        result: list[str] = []
        begin = time.monotonic()
        yield result
        self.lines.append((name, "; ".join(result), time.monotonic() - begin))

    def table(self) -> str:
        """Steps, results and seconds."""
        rows = [*self.lines, ("all of it", "", time.monotonic() - self.begin)]
        width, wide = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        return "\n".join(f"{name:{width}}  {result:{wide}}  {seconds:7.1f} s" for name, result, seconds in rows)


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


def upload_files(kubectl: Kubectl, story: Story) -> list[assets.Mail]:
    """Mails onto their claim; the held-out ones."""
    with story.step("mails") as result:
        files = assets.spam_files()
        kubectl.apply(HERE / SPAM / "namespace.yaml")
        kubectl.apply(HERE / SPAM / "claims.yaml")
        rows = [json.loads(line) for line in files.held_out.open(encoding="utf-8")]
        count = sum(1 for _ in files.train.open(encoding="utf-8"))
        image = operator_image(kubectl)
        sent = upload(kubectl, NAMESPACE, "mail", targets("", [files.train, files.held_out]), image)
        result.append(f"{count} to train on, {len(rows)} held out")
        say(
            f"{result[0]}; "
            + (f"{sent / 1e6:.1f} MB uploaded to pvc://mail" if sent else "pvc://mail has them already")
        )
        return [assets.Mail(row["text"], row["label"]) for row in rows]


def train(kubectl: Kubectl, story: Story, *, again: bool) -> None:
    """The TrainingJob, from apply to published model. SystemExit with the condition's message if it fails."""
    with story.step("training") as result:
        old = kubectl.get("trainingjob", SPAM, NAMESPACE)
        if old is not None and (again or condition(old, "Succeeded").get("status") == "False"):
            kubectl.run("delete", "trainingjob", SPAM, "-n", NAMESPACE, "--wait=true")
            old = None
        if old is None:
            say(kubectl.apply(HERE / SPAM / "training-job.yaml").strip())
        job = follow(kubectl)
        best = {figure["name"]: figure["value"] for figure in artifact(job).get("metrics", [])}
        epochs = job["status"].get("epochs", [])
        result.append(f"{len(epochs)} epochs")
        if epochs:
            steps = [float(epoch["stepMilliseconds"]) for epoch in epochs if epoch.get("stepMilliseconds")]
            if steps:
                result.append(f"{sum(steps) / len(steps):.0f} ms a step")
        if "test/accuracy" in best:
            result.append(f"held-out accuracy {best['test/accuracy']}")
        say(f"published {artifact(job).get('uri')} {artifact(job).get('digest')}")


def artifact(job: Json) -> Json:
    """The job's newest published model."""
    found = job.get("status", {}).get("artifacts") or [{}]
    return dict(found[-1])


def follow(kubectl: Kubectl) -> Json:
    """Print what the job says of itself until it has succeeded."""
    told_epochs, told = 0, ""
    deadline = time.monotonic() + TRAIN_SECONDS
    while time.monotonic() < deadline:
        job = kubectl.get("trainingjob", SPAM, NAMESPACE)
        if job is None:
            raise SystemExit(f"the TrainingJob {NAMESPACE}/{SPAM} was deleted; start the demo again")
        status = job.get("status", {})
        for epoch in status.get("epochs", []):
            if epoch["epoch"] > told_epochs:
                told_epochs = epoch["epoch"]
                say(epoch_line(epoch, status.get("progress", {}).get("totalEpochs")))
        summary = condition(job, "Succeeded")
        if summary.get("status") == "True":
            return job
        if summary.get("status") == "False":
            raise SystemExit(
                f"training failed: {summary.get('reason')}: {summary.get('message')}\n"
                f"  kubectl describe tj {SPAM} -n {NAMESPACE}; start the demo again to train anew"
            )
        # Numbers within a phase would fill the screen: a line only where the reason or the phase changes.
        now = f"{summary.get('reason', 'waiting for the operator')}"
        message = str(summary.get("message", ""))
        if now != told:
            told = now
            say(f"{now}: {message}" if message else now)
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"training took more than {TRAIN_SECONDS:.0f} s; kubectl describe tj {SPAM} -n {NAMESPACE}")


def epoch_line(epoch: Json, total: int | None) -> str:
    """One finished epoch."""
    of = f"/{total}" if total else ""
    parts = [f"epoch {epoch['epoch']}{of}", f"loss {epoch['loss']}"]
    if epoch.get("accuracy"):
        parts.append(f"accuracy {epoch['accuracy']}")
    parts += [f"validation loss {epoch['validationLoss']}"] if epoch.get("validationLoss") else []
    parts += [f"validation accuracy {epoch['validationAccuracy']}"] if epoch.get("validationAccuracy") else []
    parts.append(f"{epoch['seconds']} s")
    if epoch.get("stepMilliseconds"):
        parts.append(f"{epoch['stepMilliseconds']} ms a step")
    return "  ".join(parts)


def serve(kubectl: Kubectl, name: str, file: Path) -> str:
    """Apply a ModelDeployment and wait until it answers; its URL. SystemExit with the message if it does not."""
    say(kubectl.apply(file).strip())
    told = ""
    deadline = time.monotonic() + SERVE_SECONDS
    while time.monotonic() < deadline:
        body = kubectl.get("modeldeployment", name, NAMESPACE) or {}
        ready = condition(body, "Ready")
        fresh = ready.get("observedGeneration") == body.get("metadata", {}).get("generation")
        if ready.get("status") == "True" and fresh:
            return str(body.get("status", {}).get("url", ""))
        now = f"{ready.get('reason', 'waiting for the operator')}: {ready.get('message', '')}".rstrip(": ")
        if now != told:
            told = now
            say(now)
        time.sleep(POLL_SECONDS)
    raise SystemExit(
        f"the ModelDeployment {name} did not get ready: {told}; kubectl describe mdep {name} -n {NAMESPACE}"
    )


def classify(gateway: Gateway, mails: list[assets.Mail], result: list[str]) -> None:
    """Labels for all held-out mails, a few of them shown."""
    begin = time.monotonic()
    given: list[str] = []
    for start in range(0, len(mails), 32):
        given += gateway.classify(SPAM, [mail.text for mail in mails[start : start + 32]])
    seconds = time.monotonic() - begin
    half = [mail for mail in mails if mail.label == "spam"][: SHOWN_MAILS // 2]
    shown = [*half, *[mail for mail in mails if mail.label == "ham"][: SHOWN_MAILS - len(half)]]
    answers = dict(zip((mail.text for mail in mails), given, strict=True))
    for mail in shown:
        mark = "" if answers[mail.text] == mail.label else f"   (it is {mail.label})"
        say(f"  {answers[mail.text]:4}  {mail.text[:84]}{mark}")
    right = sum(label == mail.label for label, mail in zip(given, mails, strict=True))
    result.append(f"{100 * right / len(mails):.1f} % of {len(mails)} unseen mails right")
    result.append(f"{len(mails) / seconds:.0f} mails a second")
    say(result[0])


def gateway_service(kubectl: Kubectl) -> tuple[str, str, int]:
    """(namespace, service/NAME, port) of the gateway, whatever the release is called."""
    selector = "app.kubernetes.io/name=kubeformer,app.kubernetes.io/component=gateway"
    found = kubectl.json("get", "services", "-A", "-l", selector)["items"]
    if not found:
        raise SystemExit("there is no gateway in this cluster: run `make demo`, or install helm/kubeformer")
    metadata: dict[str, Any] = found[0]["metadata"]
    return metadata["namespace"], f"service/{metadata['name']}", int(found[0]["spec"]["ports"][0]["port"])


def tell(kubectl: Kubectl, story: Story, *, again: bool) -> None:
    """All steps."""
    mails = upload_files(kubectl, story)
    train(kubectl, story, again=again)
    namespace, service, port = gateway_service(kubectl)
    with PortForward(kubectl, namespace, service, port) as forward:
        gateway = Gateway(forward.url)
        with story.step("spam filter") as result:
            serve(kubectl, SPAM, HERE / SPAM / "model-deployment.yaml")
            classify(gateway, mails, result)
        with story.step("SmolLM2 upload") as result:
            directory = smollm2.ensure()
            kubectl.apply(HERE / CHAT / "claims.yaml")
            sent = upload(kubectl, NAMESPACE, "models", targets(CHAT, [directory]), operator_image(kubectl))
            result.append(f"{sent / 1e6:.0f} MB to pvc://models/{CHAT}" if sent else "there already")
            say(result[0])
        with story.step("SmolLM2 chat") as result:
            serve(kubectl, CHAT, HERE / CHAT / "model-deployment.yaml")
            say(f"\n> {QUESTION}")
            spoken = gateway.chat(CHAT, QUESTION, 80, lambda piece: print(piece, end="", flush=True))
            speed = (spoken.tokens - 1) / max(1e-9, spoken.seconds - spoken.first_seconds)
            result.append(
                f"{spoken.tokens} tokens, first after {1000 * spoken.first_seconds:.0f} ms, {speed:.1f} a second"
            )
            say(f"\n\n{'; '.join(result)}")
    say("\n" + story.table())
    say(next_commands(kubectl, namespace, service, port))


def next_commands(kubectl: Kubectl, namespace: str, service: str, port: int) -> str:
    """What to try next, ready to be pasted."""
    config = kubectl.environment.get("KUBECONFIG")
    lines = [f"export KUBECONFIG={config}"] if config else []
    lines += [
        f"kubectl get tj,mdep -n {NAMESPACE}",
        f"kubectl describe tj {SPAM} -n {NAMESPACE}",
        "kubectl explain tj.spec.training",
        f"kubectl scale mdep {SPAM} --replicas=2 -n {NAMESPACE}",
        f"kubectl port-forward -n {namespace} {service} 8080:{port} &",
        'curl localhost:8080/classify -d \'{"model": "spam-filter", "input": "You have won a million dollars"}\'',
        "curl localhost:8080/v1/chat/completions -d "
        '\'{"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}\'',
        "python -m examples.demo --again     # train a new spam filter",
        "make down",
    ]
    return "\nThe cluster stays up. Next:\n\n" + "\n".join(f"  {line}" for line in lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--again", action="store_true", help="train a new model even if there is one")
    options = parser.parse_args()
    try:
        tell(Kubectl(), Story(), again=options.again)
    except (KubectlError, GatewayError) as error:
        print(f"\ndemo: {error}\nThe same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
