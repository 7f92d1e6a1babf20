"""The files of the systemd service, as text. `deploy/` holds them as they are on Debian."""

from __future__ import annotations

from dataclasses import dataclass

MARK = "# Made by `infi-edge service install`; `infi-edge service remove` takes it away."
"""The first line of every file that install makes: without it, a file is somebody else's."""

USER = "infi-edge"
UNIT = "/etc/systemd/system/infi-edge.service"
ENABLED = "/etc/systemd/system/multi-user.target.wants/infi-edge.service"
UDEV_RULES = "/etc/udev/rules.d/55-infi-edge.rules"
SYSUSERS = "/etc/sysusers.d/infi-edge.conf"
TMPFILES = "/etc/tmpfiles.d/infi-edge.conf"
CONFIG_DIR = "/etc/infi-edge"
STATE_DIR = "/var/lib/infi-edge"
CACHE_DIR = "/var/cache/infi-edge"

DEVICE_GROUPS = ("video", "audio", "i2c", "dialout", "render")
"""Groups that own devices, where they exist: the unit does not start with one that does not."""

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What the service cannot see (ProtectHome, PrivateTmp)."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What differs between machines. command: the infi-edge of the virtual environment. config:
    a file in CONFIG_DIR. jetson: whether the camera and the GPU are NVIDIA's."""

    command: str
    config: str
    groups: tuple[str, ...]
    jetson: bool = False


def unit_text(unit: Unit) -> str:
    """Return the systemd unit."""
    return _UNIT.format(
        mark=MARK,
        command=unit.command,
        config=unit.config,
        config_dir=CONFIG_DIR,
        groups=" ".join(unit.groups),
        private_tmp=_JETSON if unit.jetson else "PrivateTmp=yes",
    )


_JETSON = """\
# A Jetson: nvargus-daemon's socket is in /tmp; the GPU, encoder and camera are /dev/nv*.
PrivateTmp=no
ReadWritePaths=/tmp
DeviceAllow=char-nv* rw"""

_UNIT = """\
{mark}
[Unit]
Description=infi-edge, an input filter in front of an expensive model
After=network.target sound.target nvargus-daemon.service
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} run {config}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={config_dir}
TimeoutStartSec=2min

# It ends within 2 s by itself; then its children are killed too.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=10

# The daemon reports progress of every source. A core of a hung one would fill the card.
WatchdogSec=30
LimitCORE=0

# Longer and longer waits, from systemd 254 on. An older one (Raspberry Pi OS 12, JetPack 6)
# ignores the last two lines, says so when it loads the unit, and always waits 10 s. The count
# never goes back while the service is up, so the longest wait stays short.
Restart=always
RestartSec=10
RestartSteps=4
RestartMaxDelaySec=1min

# The model may take all of a core, but not the way into the machine (ssh). With too little
# memory this goes first, and comes back; a lost camera process alone is opened again.
Nice=5
OOMScoreAdjust=300
OOMPolicy=continue
MemoryMax=80%

# The log goes to the journal, once per cause.
SyslogIdentifier=infi-edge
Environment=PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
Environment=HOME=/var/lib/infi-edge XDG_CACHE_HOME=/var/cache/infi-edge

# Who it is, and the only places it may write.
User=infi-edge
Group=infi-edge
SupplementaryGroups={groups}
StateDirectory=infi-edge
StateDirectoryMode=0750
CacheDirectory=infi-edge
CacheDirectoryMode=0750
UMask=0027
ProtectSystem=strict
ProtectHome=yes
{private_tmp}

# The devices that sources read; each still has its own group. char-media, char-dma_heap and
# char-drm: libcamera. char-vcio: vcgencmd.
DevicePolicy=closed
DeviceAllow=char-video4linux rw
DeviceAllow=char-media rw
DeviceAllow=char-dma_heap rw
DeviceAllow=char-drm rw
DeviceAllow=char-alsa rw
DeviceAllow=char-i2c rw
DeviceAllow=char-iio rw
DeviceAllow=char-ttyUSB rw
DeviceAllow=char-ttyACM rw
DeviceAllow=char-ttyAMA rw
DeviceAllow=char-ttyS rw
DeviceAllow=char-vcio rw

# An IIO sensor is switched on through files here; only those of the udev rule are the group's.
ReadWritePaths=-/sys/devices

# No more rights than that. Not set: MemoryDenyWriteExecute (sounddevice's callback and
# XNNPACK make code), ProcSubset=pid (/proc/cpuinfo and /proc/meminfo are read).
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
KeyringMode=private
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""

UDEV_TEXT = f"""\
{MARK}
# Motion sensors. Cameras and sound are given to their groups by the system's own rules, and so is
# I2C where i2c-tools or Raspberry Pi OS are: theirs come later and win.
SUBSYSTEM=="i2c-dev", GROUP="{USER}", MODE="0660"
SUBSYSTEM=="iio", KERNEL=="iio:device*", GROUP="{USER}", MODE="0660"
# The files that choose an IIO sensor's channels, rate, clock and trigger, and switch its buffer on.
SUBSYSTEM=="iio", ACTION!="remove", RUN+="/usr/bin/find /sys%p -type f -perm -200 \
( -path */buffer* -o -path */scan_elements/* -o -path */trigger/* -o -name *sampling_frequency \
-o -name current_timestamp_clock ) -exec chgrp {USER} {{}} + -exec chmod g+w {{}} +"
"""

SYSUSERS_TEXT = f"""\
{MARK}
u {USER} - "infi-edge" {STATE_DIR}
"""

TMPFILES_TEXT = f"""\
{MARK}
# The configuration may hold a camera's password.
d {CONFIG_DIR} 0750 root {USER}
"""
