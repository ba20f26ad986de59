"""Healthy trainings of many kinds, each of a tiny network and a few hundred steps; each traced."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

import tracer
from tests.digits import batches, classify, digits, mlp
from tracer.log.store import Local as Path


def seed() -> int:
    """The seed of this training: its data are its own, too."""
    return int(torch.initial_seed())


def batch_norm(path: Path) -> None:
    """A CNN with batch normalisation, behind biases that it takes away again."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    with tracer.attach(model, path) as trace:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        classify(model, optimizer, batches(*digits(seed()), 220, 32), trace)


class Residual(nn.Module):
    """A residual block with batch normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The block's outputs."""
        found = self.first_norm(self.first(inputs)).relu()
        outputs: torch.Tensor = (inputs + self.second_norm(self.second(found))).relu()
        return outputs


def frozen_backbone(path: Path) -> None:
    """A residual network whose blocks are frozen, with a new head."""
    backbone = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), Residual(8), Residual(8))
    backbone.requires_grad_(False)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    with tracer.attach(model, path) as trace:
        classify(nn.Sequential(backbone, head), optimizer, batches(*digits(seed()), 200, 32), trace)


def gan(path: Path) -> None:
    """A GAN of digits."""
    inputs, _ = digits(seed())
    model = nn.ModuleDict(
        {
            "generator": nn.Sequential(mlp(16, 64, 64, activation=nn.LeakyReLU), nn.ReLU(), nn.Linear(64, 64)),
            "discriminator": mlp(64, 64, 64, 1, activation=nn.LeakyReLU),
        }
    )
    generator, discriminator = model["generator"], model["discriminator"]
    of_generator = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    with tracer.attach(model, path) as trace:
        for real, _ in batches(inputs, inputs, 300):
            fake = generator(torch.randn(64, 16)).sigmoid()
            of_discriminator.zero_grad()
            told, taken = discriminator(real), discriminator(fake.detach())
            d_loss = criterion(told, torch.ones_like(told)) + criterion(taken, torch.zeros_like(taken))
            d_loss.backward()
            of_discriminator.step()
            of_generator.zero_grad()
            taken = discriminator(fake)
            g_loss = criterion(taken, torch.ones_like(taken))
            g_loss.backward()
            of_generator.step()
            trace.log(d_loss=d_loss, g_loss=g_loss)


class Corridor:
    """Walkers in corridors: all begin in the middle, the right end has a reward, and twenty steps are the time."""

    def __init__(self, walkers: int, length: int = 9) -> None:
        self.length = length
        self.at = torch.full((walkers,), length // 2)

    def seen(self) -> torch.Tensor:
        """What each walker sees: its place."""
        return nn.functional.one_hot(self.at, self.length).float()

    def move(self, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Walk. Returns rewards, and who has come to an end and stands in the middle anew."""
        self.at = (self.at + 2 * right - 1).clamp(0, self.length - 1)
        reward = (self.at == self.length - 1).float()
        done = (self.at == 0) | (reward > 0)
        self.at = torch.where(done, self.length // 2, self.at)
        return reward, done


def reinforce(path: Path) -> None:
    """REINFORCE with a sparse reward, whose loss tells nothing of how well it goes."""
    model = mlp(9, 32, 2, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with tracer.attach(model, path) as trace:
        for _ in range(200):
            corridor = Corridor(4)
            chances, rewards = [], []
            for _ in range(12):
                action = torch.distributions.Categorical(logits=model(corridor.seen()))
                taken = action.sample()
                chances.append(action.log_prob(taken))
                rewards.append(corridor.move(taken)[0])
            returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)
            loss = -(torch.stack(chances) * returns).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss, reward=torch.stack(rewards).sum(0).mean())


def dqn(path: Path) -> None:
    """A DQN with replay and a target network, and a sparse reward: its loss rises once there is one."""
    model = nn.ModuleDict({"online": mlp(9, 32, 32, 2)})
    model["target"] = copy.deepcopy(model["online"])
    optimizer = torch.optim.Adam(model["online"].parameters(), lr=1e-3)
    corridor, replay = Corridor(4), []
    with tracer.attach(model, path) as trace:
        for step in range(300):
            seen = corridor.seen()
            random = torch.rand(4) < max(0.1, 1 - step / 150)
            with torch.no_grad():
                action = torch.where(random, torch.randint(2, (4,)), model["online"](seen).argmax(1))
            reward, done = corridor.move(action)
            replay.append((seen, action, reward, done, corridor.seen()))
            few = [replay[int(place)] for place in torch.randint(len(replay), (16,))]
            seen, action, reward, done, later = (torch.cat(column) for column in zip(*few, strict=True))
            with torch.no_grad():
                wanted = reward + 0.95 * model["target"](later).max(1).values * ~done
            optimizer.zero_grad()
            value = model["online"](seen).gather(1, action[:, None]).squeeze(1)
            loss = nn.functional.smooth_l1_loss(value, wanted)
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)
            if step % 50 == 49:
                model["target"].load_state_dict(model["online"].state_dict())


class LanguageModel(nn.Module):
    """A causal transformer whose head is its table of tokens."""

    def __init__(self, tokens: int = 24, width: int = 16, length: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Scores of the next token at each place."""
        found = self.tokens(text) + self.places.weight[: text.shape[1]]
        found = self.norm(self.encoder(found, mask=self.mask, is_causal=True))
        return nn.functional.linear(found, self.tokens.weight)


def walks(tokens: int, length: int, steps: int, size: int = 16) -> Iterator[torch.Tensor]:
    """Texts of a language whose next token depends on the one before."""
    chances = (2 * torch.randn(tokens, tokens)).softmax(1)
    for _ in range(steps):
        text = [torch.randint(tokens, (size,))]
        for _ in range(length):
            text.append(torch.multinomial(chances[text[-1]], 1).squeeze(1))
        yield torch.stack(text, 1)


def language_model(path: Path) -> None:
    """A transformer with tied embeddings, warmed up, then cooled down along a cosine, and clipped."""
    model, steps = LanguageModel(), 220
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with tracer.attach(model, path) as trace:
        for text in walks(24, 16, steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            trace.log(loss=loss)


def recurrent(path: Path) -> None:
    """An LSTM that reads images row by row, with its gradients clipped."""
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 32, batch_first=True), "head": nn.Linear(32, 10)})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(seed()), 250, 32):
            optimizer.zero_grad()
            scores = model["head"](model["lstm"](inputs.unflatten(1, (8, 8)))[0][:, -1])
            loss = nn.functional.cross_entropy(scores, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            trace.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())


def vae(path: Path) -> None:
    """A variational autoencoder of digits."""
    inputs, _ = digits(seed())
    model = nn.ModuleDict({"encoder": mlp(64, 64, 16), "decoder": mlp(8, 64, 64)})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for images, _ in batches(inputs, inputs, 300):
            optimizer.zero_grad()
            mean, spread = model["encoder"](images).chunk(2, 1)
            drawn = mean + (0.5 * spread).exp() * torch.randn_like(mean)
            given = nn.functional.binary_cross_entropy_with_logits(
                model["decoder"](drawn), images, reduction="none"
            ).sum(1)
            kl = -0.5 * (1 + spread - mean.square() - spread.exp()).sum(1)
            loss = (given + kl).mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss, kl=kl.mean())


def autoencoder(path: Path) -> None:
    """An autoencoder whose images' borders are always empty."""
    inputs, _ = digits(seed())
    model = mlp(64, 32, 8, 32, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with tracer.attach(model, path) as trace:
        for images, _ in batches(inputs, inputs, 300):
            optimizer.zero_grad()
            loss = (model(images) - images).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


class Contrastive(nn.Module):
    """Two encoders and a temperature, as CLIP has them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(32, 64, 16), mlp(32, 64, 16)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """How alike each left half and each right half are."""
        left, right = (
            nn.functional.normalize(f(x)) for f, x in ((self.left, images[:, :32]), (self.right, images[:, 32:]))
        )
        return self.logit_scale.exp() * left @ right.T


def contrastive(path: Path) -> None:
    """Upper halves of images and their lower halves are brought together, with a learnt temperature."""
    inputs, _ = digits(seed())
    model = Contrastive()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for images, _ in batches(inputs, inputs, 300):
            optimizer.zero_grad()
            alike, own = model(images), torch.arange(len(images))
            loss = (nn.functional.cross_entropy(alike, own) + nn.functional.cross_entropy(alike.T, own)) / 2
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def averaged(path: Path) -> None:
    """A model, and beside it a moving average of its weights."""
    online = mlp(64, 64, 32, 10)
    average = torch.optim.swa_utils.AveragedModel(online, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    model = nn.ModuleDict({"online": online, "average": average})
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        classify(
            online, optimizer, batches(*digits(seed()), 300), trace, lambda step: average.update_parameters(online)
        )


def at_its_floor(path: Path) -> None:
    """A trained model is trained on: its loss is at its floor from the first step."""
    inputs, labels = digits(seed())
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    noisy = ((images + 0.5 * torch.randn_like(images), targets) for images, targets in batches(inputs, labels, 900))
    for images, targets in itertools.islice(noisy, 600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.Adam(model.parameters(), lr=1e-4), noisy, trace)


def validated(path: Path) -> None:
    """Dropout and weight decay, in epochs with a validation after each."""
    inputs, labels = digits(seed())
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    with tracer.attach(model, path) as trace:
        for _ in range(10):
            model.train()
            classify(model, optimizer, batches(inputs[:1280], labels[:1280], 20), trace)
            model.eval()
            with torch.no_grad():
                scores = model(inputs[1280:])
            right = (scores.argmax(1) == labels[1280:]).float().mean()
            trace.log(val_loss=nn.functional.cross_entropy(scores, labels[1280:]), val_accuracy=right)


def mixed_precision(path: Path) -> None:
    """Autocast to bfloat16 on the CPU, with a GradScaler."""
    model = mlp(64, 128, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=50)
    with tracer.attach(model, path, scaler=scaler) as trace:
        for inputs, labels in batches(*digits(seed()), 200):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(inputs)
                loss = nn.functional.cross_entropy(scores, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            trace.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())


def sharpness_aware(path: Path) -> None:
    """SAM: each step climbs a little, and updates with the gradients from there."""
    model = mlp(64, 64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(seed()), 200):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            climbed = []
            with torch.no_grad():
                norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    climbed.append(0.05 * parameter.grad / (norm + 1e-12))
                    parameter.add_(climbed[-1])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            with torch.no_grad():
                for parameter, climb in zip(model.parameters(), climbed, strict=True):
                    parameter.sub_(climb)
            optimizer.step()
            trace.log(loss=loss)


def lbfgs(path: Path) -> None:
    """LBFGS with a line search on all of the data, until nothing is left to learn."""
    inputs, labels = digits(seed())
    inputs, labels = inputs[:256], labels[:256]
    model = mlp(64, 16, 10, activation=nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    with tracer.attach(model, path) as trace:

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            decay = sum(parameter.square().sum() for parameter in model.parameters())
            loss = nn.functional.cross_entropy(model(inputs), labels) + 1e-3 * decay
            loss.backward()
            return loss

        for _ in range(100):
            trace.log(loss=optimizer.step(closure))


def lasso(path: Path) -> None:
    """Weights that an L1 penalty makes sparse: most end as exactly 0."""
    model = mlp(64, 64, 10)
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, path) as trace:

        def shrink(step: int) -> None:
            with torch.no_grad():
                for weight in weights:
                    weight.copy_(weight.sign() * (weight.abs() - 3e-4).clamp(min=0))

        classify(model, optimizer, batches(*digits(seed()), 400), trace, shrink)


def sparse_embeddings(path: Path) -> None:
    """Skip-grams: two large tables whose gradients are sparse, of words that are frequent or rare."""
    words, around = (nn.Embedding(2000, 16, sparse=True) for _ in range(2))
    nn.init.uniform_(words.weight, -0.5 / 16, 0.5 / 16)
    nn.init.zeros_(around.weight)
    model = nn.ModuleDict({"words": words, "around": around})
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.02)
    frequent = 1 / torch.arange(1, 2001).float()
    with tracer.attach(model, path) as trace:
        for _ in range(300):
            word = torch.multinomial(frequent, 256, replacement=True)
            near, far = (word // 10 * 10 + torch.randint(10, (256,))) % 2000, torch.randint(2000, (256,))
            optimizer.zero_grad()
            good, bad = ((words(word) * around(other)).sum(1) for other in (near, far))
            loss = -(nn.functional.logsigmoid(good) + nn.functional.logsigmoid(-bad)).mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def multi_task(path: Path) -> None:
    """Two tasks on one trunk, of which the second has labels now and then, and else a loss of 0."""
    model = nn.ModuleDict(
        {"trunk": nn.Sequential(mlp(64, 64), nn.ReLU()), "often": nn.Linear(64, 10), "seldom": nn.Linear(64, 1)}
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(seed()), 300):
            optimizer.zero_grad()
            found = model["trunk"](inputs)
            known = (torch.rand(()) < 0.05).float()
            often = nn.functional.cross_entropy(model["often"](found), labels)
            seldom = known * (model["seldom"](found).squeeze(1) - labels / 10).square().mean()
            (often + seldom).backward()
            optimizer.step()
            trace.log(often_loss=often, seldom_loss=seldom)


def skipped_head(path: Path) -> None:
    """A head whose batch comes each tenth step, and which has no gradient in the others."""
    model = nn.ModuleDict(
        {"trunk": nn.Sequential(mlp(64, 64), nn.ReLU()), "often": nn.Linear(64, 10), "seldom": nn.Linear(64, 1)}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for step, (inputs, labels) in enumerate(batches(*digits(seed()), 300)):
            optimizer.zero_grad()
            found = model["trunk"](inputs)
            loss = nn.functional.cross_entropy(model["often"](found), labels)
            if step % 10 == 9:
                loss = loss + (model["seldom"](found).squeeze(1) - labels / 10).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


class Experts(nn.Module):
    """A layer of experts, of which a noisy gate asks one for each example."""

    def __init__(self, width: int, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(mlp(width, 32, width) for _ in range(experts))
        self.balance = torch.zeros(())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs of the experts that were asked."""
        asked = self.gate(inputs)
        share = (asked + torch.randn_like(asked)).softmax(1)
        weight, chosen = share.max(1)
        given = nn.functional.one_hot(chosen, len(self.experts)).float()
        self.balance = len(self.experts) * (share.mean(0) * given.mean(0)).sum()
        found = torch.zeros_like(inputs)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().squeeze(1)
            if len(mine):
                found = found.index_add(0, mine, weight[mine, None] * expert(inputs[mine]))
        return inputs + found


def mixture_of_experts(path: Path) -> None:
    """A mixture of four experts, some of which nobody asks in a step."""
    experts = Experts(32)
    model = nn.Sequential(nn.Linear(64, 32), experts, nn.LayerNorm(32), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(seed()), 220, 16):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            (loss + 0.01 * experts.balance).backward()
            optimizer.step()
            trace.log(loss=loss)


def regression(path: Path) -> None:
    """A regression in float64, of targets in the hundreds."""
    model = mlp(2, 32, 32, 1, activation=nn.Tanh).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with tracer.attach(model, path) as trace:
        for _ in range(400):
            inputs = torch.rand(64, 2, dtype=torch.float64) * 4 - 2
            targets = 100 + 50 * (2 * inputs[:, 0]).sin() * inputs[:, 1]
            optimizer.zero_grad()
            loss = (model(inputs).squeeze(1) - targets).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def moons(count: int) -> torch.Tensor:
    """Points of two half circles."""
    angle, upper = torch.rand(count) * math.pi, torch.rand(count) < 0.5
    x, y = angle.cos(), angle.sin()
    points = torch.stack([torch.where(upper, x, 1 - x), torch.where(upper, y, 0.5 - y)], 1)
    return points + 0.05 * torch.randn(count, 2)


def flow(path: Path) -> None:
    """A normalising flow of affine couplings, each of which begins as the identity."""
    model = nn.ModuleList(mlp(1, 32, 2, activation=nn.Tanh) for _ in range(4))
    for name, parameter in model.named_parameters():
        if ".2." in name:
            nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with tracer.attach(model, path) as trace:
        for _ in range(220):
            kept, changed = moons(128).chunk(2, 1)
            logs = torch.zeros(128)
            for coupling in model:
                scale, shift = coupling(kept).chunk(2, 1)
                kept, changed = changed * scale.tanh().exp() + shift, kept
                logs = logs + scale.tanh().squeeze(1)
            loss = (0.5 * (kept.square() + changed.square()).squeeze(1) + math.log(2 * math.pi) - logs).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def diffusion(path: Path) -> None:
    """A diffusion model of points that learns to tell the noise, whose loss is noise for the most part."""
    model = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    kept = torch.linspace(0.9999, 0.95, 100).cumprod(0)
    with tracer.attach(model, path) as trace:
        for _ in range(300):
            points, time = moons(128), torch.randint(100, (128,))
            noise, share = torch.randn_like(points), kept[time, None]
            noisy = share.sqrt() * points + (1 - share).sqrt() * noise
            when = time[:, None] / 100
            given = torch.cat([noisy, when, (when * 6).sin(), (when * 6).cos(), (when * 30).sin()], 1)
            optimizer.zero_grad()
            loss = (model(given) - noise).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def physics(path: Path) -> None:
    """A network that solves an equation, u'' = -u, by its own second derivative: a double backward."""
    model = mlp(1, 32, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with tracer.attach(model, path) as trace:
        for _ in range(220):
            x = (torch.rand(64, 1) * math.pi).requires_grad_()
            u = model(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
            edges = model(torch.tensor([[0.0], [math.pi / 2]])) - torch.tensor([[0.0], [1.0]])
            loss = (bend + u).square().mean() + edges.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def federated(path: Path) -> None:
    """Clients that train apart, each on its own digits, and take over their average now and then."""
    inputs, labels = digits(seed())
    model = mlp(64, 32, 10)
    others = [copy.deepcopy(model) for _ in range(2)]
    clients = [model, *others]
    data = [batches(inputs[labels % 3 == own], labels[labels % 3 == own], 220, 32) for own in range(3)]
    optimizers = [torch.optim.SGD(client.parameters(), lr=0.1) for client in clients]
    with tracer.attach(model, path) as trace:
        for step in range(220):
            for client, optimizer, each in zip(clients, optimizers, data, strict=True):
                images, targets = next(each)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(client(images), targets)
                loss.backward()
                optimizer.step()
                if client is model:
                    trace.log(loss=loss)
            if step % 10 == 9:
                with torch.no_grad():
                    for copies in zip(*(client.parameters() for client in clients), strict=True):
                        average = torch.stack([each.detach() for each in copies]).mean(0)
                        for each in copies:
                            each.copy_(average)


ZOO: list[Callable[[Path], None]] = [
    batch_norm,
    frozen_backbone,
    gan,
    reinforce,
    dqn,
    language_model,
    recurrent,
    vae,
    autoencoder,
    contrastive,
    averaged,
    at_its_floor,
    validated,
    mixed_precision,
    sharpness_aware,
    lbfgs,
    lasso,
    sparse_embeddings,
    multi_task,
    skipped_head,
    mixture_of_experts,
    regression,
    flow,
    diffusion,
    physics,
    federated,
]
