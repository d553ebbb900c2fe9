// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/http"
	"time"
)

// certificateLife is longer than any run of the lab.
const certificateLife = 7 * 24 * time.Hour

// Authority is a certificate authority for servers on this machine, and for clients of servers that require client
// certificates.
type Authority struct {
	root *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes an Authority with a new root certificate.
func NewAuthority() *Authority {
	a := &Authority{root: template("oidcexchange-lab CA"), key: generateKey("ES256")}
	a.root.IsCA, a.root.BasicConstraintsValid, a.root.MaxPathLenZero = true, true, true
	a.root.KeyUsage = x509.KeyUsageCertSign
	a.root = a.sign(a.root, a.key.Public())
	return a
}

// PEM returns the root certificate, for others to trust.
func (a *Authority) PEM() string { return CertificatePEM(a.root) }

// Issue makes a certificate and its key, for a server at localhost and the loopback addresses, or for a client. change may
// alter the certificate before it is signed; nil leaves it as it is.
func (a *Authority) Issue(change func(*x509.Certificate)) tls.Certificate {
	key := generateKey("ES256")
	leaf := template("oidcexchange-lab")
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaf.DNSNames = []string{"localhost"}
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if change != nil {
		change(leaf)
	}
	signed := a.sign(leaf, key.Public())
	return tls.Certificate{Certificate: [][]byte{signed.Raw}, PrivateKey: key, Leaf: signed}
}

func (a *Authority) sign(c *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, c, a.root, public, a.key)
	if err != nil {
		panic("lab: signing a certificate: " + err.Error())
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		panic("lab: reading a certificate: " + err.Error())
	}
	return signed
}

// Client returns an HTTP client that trusts this authority alone.
func (a *Authority) Client() *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(a.root)
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
	}
}

// PairPEM encodes a certificate that Issue made, and its key.
func PairPEM(c tls.Certificate) (cert, key string) {
	return CertificatePEM(c.Leaf), KeyPEM(c.PrivateKey.(*ecdsa.PrivateKey))
}

// KeyPEM encodes a private key (PKCS #8).
func KeyPEM(key crypto.Signer) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic("lab: encoding a key: " + err.Error())
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// CertificatePEM encodes a certificate.
func CertificatePEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// template returns the fields that all certificates share; signing fills in the serial number.
func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(certificateLife),
	}
}
