"""Real trainings of seconds in which all is well, though some look ill at first sight; each traced."""

import copy
import itertools

import torch
from torch import nn

import tracer
from tests.digits import batches, classify, digits, mlp
from tracer.demo import Images, evaluate, load
from tracer.log.store import Local as Path


def frozen(path: Path) -> None:
    """A layer that is frozen on purpose."""
    model = mlp(64, 64, 32, 10)
    model[0].requires_grad_(False)
    with tracer.attach(model, path) as trace:
        classify(
            model,
            torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3),
            batches(*digits(), 300),
            trace,
        )


def healthy_mlp(path: Path) -> None:
    """An MLP with Adam."""
    model = mlp(64, 128, 64, 10)
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches(*digits(), 400), trace)


def converged(path: Path) -> None:
    """An MLP that has long learnt all there is, with the validation logged."""
    inputs, labels = digits(int(torch.initial_seed()))
    model = mlp(64, 128, 64, 10)
    with tracer.attach(model, path) as trace:

        def validate(step: int) -> None:
            if step % 100 == 99:
                with torch.no_grad():
                    trace.log(val_loss=nn.functional.cross_entropy(model(inputs[1500:]), labels[1500:]))

        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        classify(model, optimizer, batches(inputs[:1500], labels[:1500], 1500), trace, validate)


def by_hand(path: Path) -> None:
    """Gradients of a part that are made by autograd.grad, and set by hand."""
    model = nn.Sequential(mlp(64, 32, 32), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(), 200):
            optimizer.zero_grad()
            hidden = model[0](inputs)
            loss = nn.functional.cross_entropy(model[1](hidden), labels)
            gradients = torch.autograd.grad(loss, list(model[0].parameters()), retain_graph=True)
            nn.functional.cross_entropy(model[1](hidden.detach()), labels).backward()
            for parameter, gradient in zip(model[0].parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            trace.log(loss=loss)


def moving_targets(path: Path) -> None:
    """A value whose targets grow, as those of a DQN do, and its loss with them."""
    inputs, labels = digits()
    model = mlp(64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for step, (batch, targets) in enumerate(batches(inputs, labels, 600)):
            optimizer.zero_grad()
            loss = (model(batch).squeeze(1) - targets * (1 + step / 20)).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(value_loss=loss)


def rewarded(path: Path) -> None:
    """A value whose targets are almost 0 until there is a reward, as those of a DQN."""
    inputs, labels = digits()
    model = mlp(64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for step, (batch, targets) in enumerate(batches(inputs, labels, 400)):
            optimizer.zero_grad()
            noisy = targets * (300 if step >= 200 else 0) + 0.01 * torch.randn(len(targets))
            loss = (model(batch).squeeze(1) - noisy).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def clipped(path: Path) -> None:
    """A critic as in a WGAN, whose weights are clipped."""
    inputs, _ = digits()
    model = mlp(64, 32, 32, 1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for real, _ in batches(inputs, inputs, 300):
            optimizer.zero_grad()
            loss = model(torch.rand_like(real)).mean() - model(real).mean()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.clamp_(-0.01, 0.01)
            trace.log(critic_loss=loss)


def target_network(path: Path) -> None:
    """A value that is learnt from copies: one has yet to take over the weights, as in a DQN, one does so by and by."""
    model = nn.ModuleDict({"online": nn.Sequential(mlp(64, 64), nn.LayerNorm(64), nn.Linear(64, 1))})
    model["target"], model["average"] = copy.deepcopy(model["online"]), copy.deepcopy(model["online"])
    optimizer = torch.optim.Adam(model["online"].parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for inputs, rewards in batches(*digits(), 200):
            optimizer.zero_grad()
            with torch.no_grad():
                later = torch.minimum(model["target"](inputs.roll(1, 0)), model["average"](inputs.roll(1, 0)))
            loss = (model["online"](inputs) - rewards[:, None] - 0.5 * later).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(value_loss=loss)
            with torch.no_grad():
                for slow, fast in zip(model["average"].parameters(), model["online"].parameters(), strict=True):
                    slow.lerp_(fast, 0.01)


class Adapted(nn.Module):
    """A frozen layer, and beside it a trained product of two thin matrices, of which the second begins as 0."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's outputs, adapted."""
        adapted: torch.Tensor = self.layer(inputs) + self.lora_B(self.lora_A(inputs))
        return adapted


def lora(path: Path) -> None:
    """An MLP that is adapted by LoRA, and whose new last layer begins as 0."""
    inputs, labels = digits()
    model = mlp(64, 128, 64, 10)
    for name in ("0", "2"):
        model.register_module(name, Adapted(model.get_submodule(name)))  # type: ignore[arg-type]
    for parameter in model[4].parameters():
        nn.init.zeros_(parameter)
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches(inputs, labels, 300), trace)


def small_heads(path: Path) -> None:
    """A policy and a value with orthogonal weights, whose heads have the gains 0.01 and 1, as PPO has them."""
    model = nn.ModuleDict(
        {"policy": mlp(64, 64, 64, 10, activation=nn.Tanh), "value": mlp(64, 64, 64, 1, activation=nn.Tanh)}
    )
    for name, gain in (("policy", 0.01), ("value", 1.0)):
        layers = [layer for layer in model[name].modules() if isinstance(layer, nn.Linear)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain if layer is layers[-1] else 2**0.5)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(), 300):
            optimizer.zero_grad()
            actions = torch.distributions.Categorical(logits=model["policy"](inputs))
            taken, values = actions.sample(), model["value"](inputs).squeeze(1)
            rewards = (taken == labels).float()
            gain = -(actions.log_prob(taken) * (rewards - values.detach())).mean()
            (gain + (values - rewards).square().mean() - 0.01 * actions.entropy().mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            trace.log(reward=rewards.mean())


class Bare(nn.Module):
    """Images seen through parameters that are no layer's weights: planes, gains, biases and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.gain = nn.Parameter(torch.full((16, 1, 1), 1e-6))
        self.offset = nn.Parameter(torch.zeros(1, 16, 1, 1))
        self.strength = nn.Parameter(torch.zeros(1, 1, 1, 1))
        self.planes = nn.Parameter(torch.randn(4, 16, 8, 8))
        self.biases = nn.Parameter(torch.zeros(4, 16, 8, 8))
        self.temperature = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes for each image."""
        found = self.first(images.unflatten(1, (1, 8, 8))).relu()
        found = found + self.gain * self.second(found) + self.offset + self.strength * torch.randn_like(found)
        weighed = torch.einsum("nchw,pchw->npc", found, self.planes.softmax(0) + self.biases)
        scores: torch.Tensor = self.head((weighed * self.temperature.flatten(2).squeeze(2)).mean(1) / 8)
        return scores


def bare(path: Path) -> None:
    """Parameters of four dimensions that are no layer's weights."""
    model = Bare()
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches(*digits(), 300), trace)


class Transformer(nn.Module):
    """A small one: tokens of 0 to 16, one a pixel's row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(17, 32)
        self.places = nn.Parameter(torch.randn(64, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes for each image."""
        found: torch.Tensor = self.head(self.encoder(self.tokens((pixels * 16).long()) + self.places).mean(1))
        return found


def transformer(path: Path) -> None:
    """A small transformer with AdamW."""
    model = Transformer()
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches(*digits(), 200, 32), trace)


def resnet(path: Path, epochs: int = 2) -> None:
    """ResNet-18 on digits, as the demo trains it, in short epochs."""
    from torchvision.models import resnet18

    model = resnet18(weights=None, num_classes=10)
    training, validation = load("digits", path).split(0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30 * epochs)
    generator = torch.Generator().manual_seed(int(torch.initial_seed()))
    with tracer.attach(model, path) as trace:
        for _ in range(epochs):
            model.train()
            few = itertools.islice(training.batches(generator), 30)
            classify(model, optimizer, few, trace, lambda step: schedule.step())
            loss, accuracy = evaluate(model, Images(validation.images[:100], validation.labels[:100]))
            trace.log(val_loss=loss, val_accuracy=accuracy)


HEALTHY = [
    frozen,
    healthy_mlp,
    converged,
    by_hand,
    moving_targets,
    clipped,
    target_network,
    lora,
    small_heads,
    bare,
    transformer,
    resnet,
]
