#!/bin/busybox sh
# The guest's whole user space. Once per tick it writes a numbered record to the disk, waits until the disk has it,
# and only then prints the number on the serial port. Nothing in the loop makes a process.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "init: $module does not load"
done

read -r arguments </proc/cmdline
ring=0 writer=0 writer_start=0 tick=0.005 memory=0
for argument in $arguments; do
    case $argument in
    witness.ring=*) ring=${argument#*=} ;;
    witness.tick=*) tick=${argument#*=} ;;
    witness.writer=*) writer=${argument#*=} ;;
    witness.writer_start=*) writer_start=${argument#*=} ;;
    witness.memory=*) memory=${argument#*=} ;;
    esac
done

until [ -b /dev/vda ]; do sleep 0.1; done
# sync: a write returns when the disk, its cache flushed, has it. noatime: nothing else is written.
mount -t ext2 -o sync,noatime /dev/vda /disk || mount -t ext4 -o sync,noatime /dev/vda /disk || {
    echo "init: cannot mount the disk"
    exec sleep 1000000
}
stty -onlcr </dev/console

# The power button, for `virsh shutdown`: the path is where busybox's acpid looks for it. The witness ends first: a
# write that is under way as the disk is taken away fails.
mkdir -p /etc/acpi/PWRF
printf '#!/bin/busybox sh\n: >/run/off\nsleep 5\n/bin/poweroff -f\n' >/etc/acpi/PWRF/00000080
chmod 755 /etc/acpi/PWRF/00000080
[ -e /dev/input/event0 ] && acpid -c /etc/acpi -l /dev/null >/dev/null 2>&1

# A machine with a virtio console device has a guest agent.
grep -qs 0x0003 /sys/bus/virtio/devices/*/device && /agent &

# A guest that writes: one MiB after the other, in a circle, outside the file system.
if [ "$writer" -gt 0 ]; then
    (
        for block in 0 1 2; do head -c 1048576 /dev/urandom >/run/block$block; done
        round=0
        while :; do
            place=0
            while [ "$place" -lt "$writer" ]; do
                dd if=/run/block$(((round + place) % 3)) of=/dev/vda bs=1M count=1 \
                    seek=$((writer_start + place)) oflag=direct conv=notrunc 2>/dev/null
                place=$((place + 1))
                sleep 0.02
            done
            round=$((round + 1))
        done
    ) &
fi

# A guest that rewrites so many MiB of its memory in a circle, without a pause.
if [ "$memory" -gt 0 ]; then
    head -c 4194304 /dev/urandom >/run/page
    (while :; do
        i=0
        while [ "$i" -lt "$memory" ]; do
            dd if=/run/page of=/run/memory bs=1M count=4 seek="$i" conv=notrunc 2>/dev/null
            i=$((i + 4))
        done
    done) &
fi

# The file is a ring of records of 32 bytes each, all there from the start: its size never changes.
number=0
read -r first </disk/records
if [ -n "${first%% *}" ]; then
    # Without its zeros: busybox's awk takes a number that begins with one for octal, if it can be.
    number=$(awk '{ sub(/^0+/, "", $1) } $1 + 0 > last { last = $1 + 0 } END { printf "%d", last }' /disk/records)
fi
echo "boot $number"
mkfifo /run/never
exec 3<>/run/never 4<>/disk/records
# Moves the position in descriptor 4 to the next record's place, and writes nothing.
dd if=/dev/null bs=32 seek=$((number % ring)) conv=notrunc >&4 2>/dev/null

until [ -e /run/off ]; do
    number=$((number + 1))
    if printf '%010d %020d\n' $number $number >&4; then
        printf 't %010d\n' $number
    else
        printf 'e %010d\n' $number
    fi
    [ $((number % ring)) = 0 ] && exec 4<>/disk/records
    # A pause without a process: nothing ever comes out of this pipe.
    read -r -t "$tick" nothing <&3
done
/bin/poweroff -f
