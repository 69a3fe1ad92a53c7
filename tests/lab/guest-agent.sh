#!/bin/busybox sh
# A guest agent as far as libvirt needs one: it answers, and prints on the serial port what it was asked. Started where
# the machine has a virtio console device.

for module in /modules/channel/*.ko; do
    insmod "$module"
done

port=
until [ -n "$port" ]; do
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat "$name")" = org.qemu.guest_agent.0 ] && port=${name%/name}
    done
    [ -n "$port" ] || sleep 0.1
done
exec 5<>"/dev/${port##*/}"

answer() {
    printf '{"return": %s}\n' "$1" >&5
}

# Prints the number that follows a name in the request.
number() {
    value=${request#*\""$1"\":}
    value=${value# }
    printf '%s' "${value%%[!0-9-]*}"
}

commands='guest-sync guest-sync-delimited guest-ping guest-info guest-get-time guest-set-time guest-fstrim
    guest-fsfreeze-status guest-fsfreeze-freeze guest-fsfreeze-thaw guest-shutdown'
frozen=thawed
while :; do
    # Nobody at the other end reads as an end of file.
    IFS= read -r request <&5 || { sleep 0.05; continue; }
    case $request in
    *'"execute"'*) ;;
    *) continue ;;
    esac
    command=${request#*\"execute\"}
    command=${command#*\"}
    command=${command%%\"*}
    echo "agent ${command#guest-}"
    case $command in
    guest-sync) answer "$(number id)" ;;
    guest-sync-delimited)
        printf '\377' >&5
        answer "$(number id)"
        ;;
    guest-info)
        list=
        for each in $commands; do
            list="$list${list:+, }{\"enabled\": true, \"name\": \"$each\", \"success-response\": true}"
        done
        answer "{\"version\": \"7.2.0\", \"supported_commands\": [$list]}"
        ;;
    guest-get-time) answer "$(date +%s)000000000" ;;
    guest-set-time)
        case $request in
        *'"time"'*)
            nanoseconds=$(number time)
            date -s "@${nanoseconds%?????????}" >/dev/null
            ;;
        *) hwclock -s -u 2>/dev/null ;;
        esac
        answer '{}'
        ;;
    # The witness's file system cannot tell the disk what it does not use.
    guest-fstrim) answer '{"paths": [{"path": "/disk", "minimum": 0, "trimmed": 0}]}' ;;
    guest-fsfreeze-status) answer "\"$frozen\"" ;;
    guest-fsfreeze-freeze)
        fsfreeze -f /disk
        frozen=frozen
        answer 1
        ;;
    guest-fsfreeze-thaw)
        fsfreeze -u /disk
        frozen=thawed
        answer 1
        ;;
    guest-ping) answer '{}' ;;
    guest-shutdown) : >/run/off ;;
    *) printf '{"error": {"class": "CommandNotFound", "desc": "The command %s has not been found"}}\n' "$command" >&5 ;;
    esac
done
