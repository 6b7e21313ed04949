#!/bin/sh
# Makes the certificates and keys of the tests anew, in this folder; OpenSSL 3 does it. They protect nothing.
set -eu
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat >"$scratch/ca.cnf" <<END
[ca]
default_ca = default
[default]
database = $scratch/index.txt
new_certs_dir = $scratch
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
authorityKeyIdentifier = keyid
END

sign() { # NAME KEY SECTION END [-selfsign]
    openssl req -new -key "$2" -subj "/CN=$1 of bitnetd's tests" -out "$scratch/request"
    : >"$scratch/index.txt"
    by="-cert ca.pem"
    [ $# -eq 4 ] || by=$5
    # shellcheck disable=SC2086
    openssl ca -batch -notext -config "$scratch/ca.cnf" -keyfile "$scratch/ca.key" $by -extensions "$3" \
        -startdate 20200101000000Z -enddate "$4" -in "$scratch/request" -out "$1.pem" 2>"$scratch/words" ||
        { cat "$scratch/words" >&2; exit 1; }
}

openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$scratch/ca.key"
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ecdsa.key
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out p521.key
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key
sign ca "$scratch/ca.key" authority 21200101000000Z -selfsign
sign ecdsa ecdsa.key server 21200101000000Z
sign rsa rsa.key server 21200101000000Z
sign expired ecdsa.key server 20210101000000Z
openssl pkey -in ecdsa.key -aes256 -passout pass:secret -out encrypted.key
