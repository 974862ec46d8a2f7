# shellcheck shell=bash disable=SC2034 # RESULT is what `step` in say.sh prints
# Certificates for the docker API over TCP, in the folders that docker:dind's clients know. Sourced.
# From outside: DOCKER_TLS_CERTDIR, DOCKER_TLS_SAN (as in docker:dind).

# The authority is kept, so that clients still trust it; what it signs is made again at each start, because addresses
# and names change. Elliptic curves: three keys take hundredths of a second.
make_certificates() {
  local dir=${DOCKER_TLS_CERTDIR-} way=kept san
  if [[ -z $dir ]]; then
    RESULT='the docker API is on its unix socket alone'
    if [[ -n ${DOCKER_TLS_CERTDIR+set} ]]; then
      RESULT+="; an empty DOCKER_TLS_CERTDIR opens no port here: for one without TLS, DOCKER_ARGS='-H tcp://0.0.0.0:2375'"
    fi
    return
  fi
  [[ $dir == /* && $dir != *$'\n'* ]] ||
    die tls "DOCKER_TLS_CERTDIR is ${dir@Q}, but it has to be an absolute path, as in /certs"
  dir=$R$dir
  if [[ -s $dir/server/ca.pem && -s $dir/server/cert.pem && -s $dir/server/key.pem && ! -e $dir/ca/key.pem ]]; then
    note tls "$DOCKER_TLS_CERTDIR"
    RESULT="the certificates in $DOCKER_TLS_CERTDIR/server are used as they are, since there is no ca/key.pem"
    return
  fi
  mkdir -p "$dir"/{ca,server,client} 2>/dev/null && [[ -w $dir/ca ]] ||
    die tls "DOCKER_TLS_CERTDIR is $DOCKER_TLS_CERTDIR, where nothing can be written; give it a volume"
  chmod 0700 "$dir/ca" "$dir/server"
  if ! openssl x509 -in "$dir/ca/cert.pem" -noout -checkend $((30 * 86400)) >/dev/null 2>&1; then
    way='made now'
    issue "$dir/ca" 3650 '/CN=dind-k3s CA' 'basicConstraints=critical,CA:TRUE' 'keyUsage=critical,keyCertSign,cRLSign'
  fi
  san=$(server_names)
  issue "$dir/server" 825 /CN=docker 'basicConstraints=CA:FALSE' 'extendedKeyUsage=serverAuth' "subjectAltName=$san"
  issue "$dir/client" 825 /CN=client 'basicConstraints=CA:FALSE' 'extendedKeyUsage=clientAuth'
  cp "$dir/ca/cert.pem" "$dir/server/ca.pem"
  cp "$dir/ca/cert.pem" "$dir/client/ca.pem"
  note tls "$DOCKER_TLS_CERTDIR"
  RESULT="certificates in $DOCKER_TLS_CERTDIR, authority $way, for ${san//,/ }"
}

# key.pem and cert.pem in FOLDER, moved into place whole: a client may be reading.
issue() { # FOLDER DAYS SUBJECT EXTENSION...
  local folder=$1 days=$2 subject=$3 extension words by=()
  shift 3
  if [[ $folder != */ca ]]; then by=(-CA "${folder%/*}/ca/cert.pem" -CAkey "${folder%/*}/ca/key.pem"); fi
  for extension in "$@"; do by+=(-addext "$extension"); done
  # A configuration of our own: the system's adds extensions.
  words=$(
    umask 077
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days "$days" -subj "$subject" "${by[@]}" \
      -config <(printf '[req]\ndistinguished_name=name\n[name]\n') \
      -keyout "$folder/key.new" -out "$folder/cert.new" 2>&1
  ) || die tls "no certificate for ${subject#*=}: is there a mistake in DOCKER_TLS_SAN (${DOCKER_TLS_SAN-not set})?
$(grep -m 1 -i error <<<"$words" || tail -n 1 <<<"$words")"
  chmod 0644 "$folder/cert.new"
  mv "$folder/key.new" "$folder/key.pem"
  mv "$folder/cert.new" "$folder/cert.pem"
}

# As docker:dind: all own addresses, docker, localhost, the host name, and what the user adds (DNS:… or IP:… or bare).
server_names() {
  local name asked names=("DNS:docker" "DNS:localhost" "DNS:$(<"$R/etc/hostname")")
  mapfile -t -O ${#names[@]} names < <(ip -o address | sed -n 's,.* inet6\? \([^/ ]*\).*,IP:\1,p')
  asked=${DOCKER_TLS_SAN-}
  read -r -d '' -a asked <<<"${asked//,/ }" || true
  for name in "${asked[@]}"; do
    case $name in
      DNS:* | IP:*) names+=("$name") ;;
      *[!0-9.]*) if [[ $name == *:* ]]; then names+=("IP:$name"); else names+=("DNS:$name"); fi ;;
      *) names+=("IP:$name") ;;
    esac
  done
  printf '%s\n' "${names[@]}" | sort -u | paste -s -d ,
}
