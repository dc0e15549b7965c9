<?xml version="1.0"?>
<!-- SPDX-License-Identifier: GPL-2.0-or-later

     Makes a domain XML ask for pool memory in a form that starts at once, for tools that define and start a domain in
     one step and can apply a stylesheet (its guide: xml.md). The parameter 'pool' names the pool; empty: the default. -->
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"
                xmlns:dmem="https://virt-dmem.dev/xmlns/domain/1.0">
  <xsl:param name="pool" select="''"/>
  <xsl:output omit-xml-declaration="yes" indent="yes"/>

  <xsl:template match="@*|node()">
    <xsl:copy><xsl:apply-templates select="@*|node()"/></xsl:copy>
  </xsl:template>

  <xsl:template match="/domain">
    <xsl:copy>
      <xsl:apply-templates select="@*|node()"/>
      <xsl:if test="not(metadata)"><metadata><xsl:call-template name="request"/></metadata></xsl:if>
      <xsl:if test="not(memoryBacking)"><memoryBacking><xsl:call-template name="files"/></memoryBacking></xsl:if>
    </xsl:copy>
  </xsl:template>

  <xsl:template match="/domain/metadata[not(dmem:memory)]">
    <xsl:copy><xsl:apply-templates select="@*|node()"/><xsl:call-template name="request"/></xsl:copy>
  </xsl:template>

  <xsl:template match="/domain/memoryBacking">
    <xsl:copy>
      <xsl:apply-templates select="@*|node()[not(self::hugepages|self::source|self::access|self::allocation)]"/>
      <xsl:call-template name="files"/>
    </xsl:copy>
  </xsl:template>

  <xsl:template name="request">
    <dmem:memory>
      <xsl:if test="$pool != ''"><xsl:attribute name="pool"><xsl:value-of select="$pool"/></xsl:attribute></xsl:if>
    </dmem:memory>
  </xsl:template>

  <xsl:template name="files"><source type="file"/><access mode="shared"/><allocation mode="ondemand"/></xsl:template>
</xsl:stylesheet>
