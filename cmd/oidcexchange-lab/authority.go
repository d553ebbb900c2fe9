// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"time"
)

// lifetime of the certificates, longer than any run of the program.
const lifetime = 7 * 24 * time.Hour

// authority is the certificate authority of one run. Its key is gone once the one leaf certificate is signed.
type authority struct {
	pem  []byte
	root *x509.Certificate
	leaf tls.Certificate
}

// newAuthority makes a CA and a leaf for localhost, the loopback addresses and host.
func newAuthority(host string) (*authority, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the CA key: %w", err)
	}
	ca := template("oidcexchange-lab CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.MaxPathLenZero = true, true, true
	ca.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("making the CA certificate: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing the CA certificate: %w", err)
	}
	a := &authority{pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), root: root}
	return a, a.issueLeaf(host, caKey)
}

func (a *authority) issueLeaf(host string, caKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the server key: %w", err)
	}
	leaf := template("oidcexchange-lab")
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf.DNSNames = []string{"localhost"}
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if ip := net.ParseIP(host); ip != nil {
		leaf.IPAddresses = append(leaf.IPAddresses, ip)
	} else {
		leaf.DNSNames = append(leaf.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.root, key.Public(), caKey)
	if err != nil {
		return fmt.Errorf("making the server certificate: %w", err)
	}
	a.leaf = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return nil
}

// client returns an HTTP client that trusts this authority alone.
func (a *authority) client() *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(a.root)
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
	}
}

// template returns what both certificates share; the serial number is filled in when it is signed.
func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(lifetime),
	}
}
