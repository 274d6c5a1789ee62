"""Rules about any pod template: resources, volumes, images, names."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.backends.target import Target
from serve_app.manifests.lint.objects import at, each, mapping
from serve_app.manifests.lint.quantity import amount
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.rules.serve import served
from serve_app.manifests.lint.view import EFA, NEURON, NEURONCORE, Manifests, Pod
from serve_app.neuron.stacks import stacks

_RESOURCES = "kubernetes.io docs: concepts/configuration/manage-resources-containers"
_HUGE = "kubernetes.io docs: tasks/manage-hugepages/scheduling-hugepages"
_WHOLE = (NEURON, NEURONCORE, EFA)


@rule("pod-limits", "Requests are within limits, and extended resources are the same", _RESOURCES)
def limits(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        for place, container in pod.all_containers:
            asked = mapping(container, "resources", "requests")
            most = mapping(container, "resources", "limits")
            for name in sorted({*asked, *most}):
                path = pod.at(f"{place}.resources.limits.{name}")
                whole = name in _WHOLE or name.startswith("hugepages-")
                if whole and name not in most:
                    yield Trip(pod.owner, path, "it has requests and no limit", "set the limit")
                elif whole and name in asked and amount(asked[name]) != amount(most[name]):
                    message = f"{asked[name]} are requested, and the limit is {most[name]}"
                    yield Trip(pod.owner, path, message, "make them the same")
                elif name in asked and name in most and amount(asked[name]) > amount(most[name]):
                    message = f"{asked[name]} are requested, and the limit is {most[name]}"
                    yield Trip(pod.owner, path, message, "lower the request")


@rule(
    "pod-memory",
    "Memory of Ray's containers is requested in full: requests = limits",
    f"{_RESOURCES}; kuberay common/pod.go generateRayStartCommand: Ray's memory is the limit",
)
def memory(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        if pod.group is None and not pod.on_neuron:
            continue
        most = at(pod.main, "resources", "limits", "memory")
        asked = at(pod.main, "resources", "requests", "memory")
        if most is None or (asked is not None and amount(asked) != amount(most)):
            message = f"requested are {asked}, and the limit is {most}"
            mend = "make them the same: what is over-committed is killed under load"
            yield Trip(pod.owner, pod.at("containers[0].resources"), message, mend)


@rule(
    "pod-shm",
    "Ray's and Neuron's processes share memory in /dev/shm, which is memory of the pod",
    "kuberay v1.7.0 common/pod.go addEmptyDir (adds it where it is absent, not with "
    "plasma-directory); kubernetes.io docs: concepts/storage/volumes#emptydir",
)
def shared_memory(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        mounts = {
            at(mount, "mountPath"): at(mount, "name") for mount in each(pod.main, "volumeMounts")
        }
        volume = _volume(pod, mounts.get("/dev/shm"))
        if volume is None:
            left_to_ray = pod.group is not None and "plasma-directory" not in mapping(
                pod.group, "rayStartParams"
            )
            if pod.on_neuron and not left_to_ray and "/dev/shm" not in mounts:
                message = "/dev/shm has the 64 MiB of the container runtime"
                mend = "mount an emptyDir {medium: Memory} there"
                yield Trip(pod.owner, pod.at("containers[0].volumeMounts"), message, mend)
            continue
        size, most = at(volume, "emptyDir", "sizeLimit"), pod.limit("memory")
        if at(volume, "emptyDir", "medium") != "Memory":
            message = "/dev/shm is on a disk"
            yield Trip(pod.owner, pod.at("volumes"), message, "take emptyDir {medium: Memory}")
        elif size is not None and most and amount(size) > most:
            message = f"/dev/shm of {size} is more than the pod's memory"
            yield Trip(pod.owner, pod.at("volumes"), message, "lower sizeLimit")


def _volume(pod: Pod, name: str | None) -> dict[str, object] | None:
    if name is None:
        return None
    return next((v for v in each(pod.spec, "volumes") if at(v, "name") == name), None)


@rule(
    "pod-volume",
    "Every mount has its volume",
    "kubernetes pkg/apis/core/validation/validation.go ValidateVolumeMounts",
)
def volumes(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        known = {at(volume, "name") for volume in each(pod.spec, "volumes")}
        for place, container in pod.all_containers:
            for index, mount in enumerate(each(container, "volumeMounts")):
                path = pod.at(f"{place}.volumeMounts[{index}]")
                if at(mount, "name") not in known:
                    message = f"there is no volume {at(mount, 'name')!r}"
                    yield Trip(pod.owner, path, message, "add it to `volumes`")


@rule("pod-hugepages", "Huge pages come with cpu or memory, and their volume with a limit", _HUGE)
def hugepages(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        asked = {
            name
            for _, container in pod.containers
            for name in mapping(container, "resources", "limits")
            if name.startswith("hugepages-")
        }
        for volume in each(pod.spec, "volumes"):
            medium = str(at(volume, "emptyDir", "medium") or "")
            if medium.startswith("HugePages") and not asked:
                message = f"volume {at(volume, 'name')!r} needs huge pages, and none are asked for"
                yield Trip(pod.owner, pod.at("volumes"), message, "set the limit hugepages-2Mi")
        if asked and not (pod.limit("memory") or pod.limit("cpu")):
            message = "huge pages alone are refused"
            yield Trip(pod.owner, pod.at("containers"), message, "ask for memory, too")


@rule(
    "image-tag", "Images are pinned", "kubernetes.io docs: concepts/containers/images, Image names"
)
def image_tag(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        for place, container in pod.all_containers:
            image = str(container.get("image") or "")
            tag = _tag(image)
            if "@sha256:" not in image and tag in ("", "latest"):
                message = f"{image or 'no image'!r} may be another one tomorrow"
                yield Trip(pod.owner, pod.at(f"{place}.image"), message, "name a tag")


@rule(
    "image-stack",
    "Workers run the image of their software: its tag ends in back end and vLLM",
    "serve_app/neuron/stacks.json; serve_app/config/cluster.py Image.tag",
)
def image_stack(manifests: Manifests) -> Iterator[Trip]:
    known = {f"{stack.backend}-{stack.vllm}" for stack in stacks()}
    for ray, config in served(manifests):
        targets = [engine.plan.target for engine in config.engines if engine.plan.target]
        for pod in ray.workers:
            wanted = {_suffix(t) for t in targets if pod.instance and t.instance == pod.instance}
            tag = _tag(str(pod.main.get("image") or ""))
            ours = any(tag.endswith(suffix) for suffix in known) or tag.endswith("-cpu")
            if wanted and ours and not any(tag.endswith(suffix) for suffix in wanted):
                message = f"image tag {tag}, and the config is for {', '.join(sorted(wanted))}"
                yield Trip(ray.object, pod.at("containers[0].image"), message, "take its image")


def _suffix(target: Target) -> str:
    return f"{target.stack.backend}-{target.stack.vllm}"


def _tag(image: str) -> str:
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2]
